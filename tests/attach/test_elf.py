"""Which programs ``kvmsr exec`` can start."""

import struct
import sys
from pathlib import Path

import pytest

from kvmsr.attach import find_vmm
from kvmsr.errors import UsageError

PYTHON = Path(sys.executable).resolve()
CLASS_AT, MACHINE_AT, COUNT_AT = 4, 18, 56


def changed(data, at, form, value):
    data = bytearray(data)
    struct.pack_into(form, data, at, value)
    return bytes(data)


def refusal(folder, data):
    program = folder / "program"
    program.write_bytes(data)
    program.chmod(0o755)
    with pytest.raises(UsageError) as caught:
        find_vmm(str(program))
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{program} is ")


@pytest.fixture(scope="module")
def good():
    with PYTHON.open("rb") as file:
        return file.read(4096)


def test_a_program_that_is_linked_dynamically(tmp_path, good):
    program = tmp_path / "program"
    program.write_bytes(good)
    program.chmod(0o755)
    assert find_vmm(str(program)) == program
    assert find_vmm("sh").name == "sh"


def test_a_script_counts_as_its_interpreter(tmp_path):
    script = tmp_path / "script"
    script.write_text(f"#!{PYTHON} -u\n")
    script.chmod(0o755)
    assert find_vmm(str(script)) == script


def test_what_cannot_be_started(tmp_path, good):
    none = "not an ELF program; kvmsr exec can start no other"
    foreign = "not a 64-bit x86 program; kvmsr exec can start no other"
    for data in (b"", b"text\n", good[:20], good[:63], b"\x7fELG" + good[4:]):
        assert refusal(tmp_path, data) == none
    assert refusal(tmp_path, changed(good, CLASS_AT, "B", 1)) == foreign
    assert refusal(tmp_path, changed(good, MACHINE_AT, "<H", 183)) == foreign  # AArch64
    assert refusal(tmp_path, changed(good, COUNT_AT, "<H", 65535)) == none  # it ends before that
    assert refusal(tmp_path, changed(good, COUNT_AT, "<H", 0)).startswith("statically linked")


def test_a_program_that_is_not_there():
    with pytest.raises(UsageError, match="no-such-vmm: no such program"):
        find_vmm("no-such-vmm")
