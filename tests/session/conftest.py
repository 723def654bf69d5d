"""Who runs a guest, and a guest that reads an MSR."""

import struct

import pytest

from kvmsr import native
from tests.cli.conftest import backend
from tests.conftest import GUESTS, kvm_missing

__all__ = ("backend",)

COUNT_AT = 4


@pytest.fixture(params=["c", "python", "soft"])
def kind(request):
    if request.param != "soft" and kvm_missing():
        pytest.skip(f"needs /dev/kvm: {kvm_missing()}")
    if request.param == "c" and not native.available():
        pytest.skip(f"needs {native.why_not()}")
    return request.param


@pytest.fixture
def loop(tmp_path):
    """A function that returns the image of a guest that reads MSR 0x35 so many times."""

    def made(count):
        data = bytearray((GUESTS / "loop.bin").read_bytes())
        struct.pack_into("<I", data, COUNT_AT, count)
        (tmp_path / "loop.bin").write_bytes(data)
        return tmp_path / "loop.bin"

    return made
