"""A real guest under ``kvmsr exec``, and its registers at a snapshot of it, on upstream's KVM."""

import json
import re

import pytest

from kvmsr import native
from tests.attach.upstream import boot
from tests.conftest import peer
from tests.e2e.test_userspace import work
from tests.nested.parts import MissingError

__all__ = ("work",)

pytestmark = [
    pytest.mark.peer,
    pytest.mark.slow,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]


def test_debians_kernel_and_a_snapshot_of_it(tmp_path, work):
    try:
        done = boot(tmp_path, work, peer("busybox", "**/busybox"))
    except MissingError as error:
        pytest.skip(f"needs {error}")
    assert done.status == 0, done.console_end
    text, _, summary = done.output.partition("\n{")
    assert re.findall(r"^(?:rdmsr|wrmsr).*\S", text, re.MULTILINE) == [
        "rdmsr 0x35 = 0x20004",
        "wrmsr 0x35: Input/output error",
        "rdmsr 0x34 = 0x1122334455667788",
        "rdmsr 0x1b0 = 0x6",
        "wrmsr 0x1b0 = 0x77",
        "rdmsr 0x1b0 = 0x77",
        "wrmsr 0x1b0 = 0x88",
        "rdmsr 0x1b0 = 0x77",  # after the snapshot has been loaded, and its registers
        "wrmsr 0x1b0 = 0x88",
    ]
    report = json.loads("{" + summary)
    assert report["notes"] == []
    seen = {(row["index"], row["op"]): row["count"] for row in report["accesses"]}
    assert (seen["0x35", "read"], seen["0x1b0", "write"]) == (1, 3)
