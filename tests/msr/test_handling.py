"""What KVM handles: the facts by version, and the ranges that the filter compiler relies on."""

import sys

import pytest

from kvmsr.errors import CatalogError
from kvmsr.msr import handled, handling
from kvmsr.msr.handling import read_handling
from tests.conftest import PACKAGE, ROOT

DATA = PACKAGE / "msr/data"

# All ranges, in hexadecimal, that some KVM was known to handle before there was a row for each of
# its ways: reads and writes, or one of them after a slash.
BEFORE = """
    0-1/r 10-12 17/r 1b 2a/r 2c/r 34 3a-3b 48-49 79/w 8b-8f 9e c1-c8 cd/r ce e1 e7-e8/r fe/r
    10a-10b 11e 122 140 174-176 179/r 17a-17b 186-18d 198-199/r 1a0 1c4-1c5 1c8-1c9 1d9
    1db-1de 1fc 200-2ff 309-30c 345 38d-391 3f1-3f2 3fc-3fe/r 400-47f 480-493 4c1-4c8 4d0
    560-561 570-572 580-587 600 606/r 611/r 619/r 639/r 641/r 660/r 680-69f 6a0-6a8 6c0-6df
    6e0 800-8ff d90 da0 dc0-ddf 40000000-4000009f 400000b0-400000b7 400000f1-400000f5
    400000ff-40000108 40000118 4b564d00-4b564d07 c0000080-c0000084 c0000100-c0000104
    c0000300-c0000303 c0010000-c0010007 c0010010/r c0010015 c001001b c001001f c0010020/w
    c0010055/r c0010058 c0010112-c0010113/r c0010114-c0010115 c0010117 c001011f c0010130
    c0010140-c0010141 c0010200-c001020b c0011021-c0011023 c0011029-c001102a c001102c
"""
# Found since: last-branch records of Core 2 under Linux 5.12 to 6.8, and a register that guests of
# SEV-SNP read from the CPU.
FOUND_SINCE = "40-47 60-67 c0010134/r"


def accesses(text):
    for word in text.split():
        ends, _, access = word.partition("/")
        first, _, last = ends.partition("-")
        for index in range(int(first, 16), int(last or first, 16) + 1):
            yield index, access or "rw"


def test_the_package_has_what_the_file_says():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from build_catalog import build_kvm
    finally:
        sys.path.pop(0)
    made = (DATA / "kvm.json").read_bytes()
    assert made == build_kvm(DATA), "run tools/build_catalog.py"


def test_the_filter_compiler_relies_on_the_same_ranges_as_before():
    now = {
        index: "r" * one.reads + "w" * one.writes
        for one in handled()
        for index in range(one.first, one.last + 1)
    }
    assert now == dict(accesses(BEFORE)) | dict(accesses(FOUND_SINCE))


def test_adjacent_ranges_of_one_kind_are_one():
    ranges = {(one.first, one.last): one for one in handled()}
    assert ranges[0x200, 0x2FF].what == "MTRRs, PAT, machine-check CTL2"
    assert (0x38D, 0x391) in ranges
    assert (0x400, 0x47F) in ranges  # next to 0x480, which is something else


@pytest.mark.parametrize(
    ("index", "module", "since", "until", "reads", "writes"),
    [
        (0x49, "kvm", "6.4", "", "", "emulated"),
        (0x49, "kvm_intel", "", "6.3", "", "emulated"),
        (0x1A0, "kvm", "", "", "emulated", "emulated"),
        (0x198, "kvm", "", "", "constant", ""),
        (0x2A0, "kvm", "", "6.4", "refused", "refused"),
        (0x6A2, "kvm_amd", "6.18", "", "emulated", "emulated"),
        (0xC0000302, "kvm_amd", "6.5", "", "constant", "emulated"),
        (0xC0010130, "kvm_amd", "5.11", "", "passed", "passed"),
        (0xC0011023, "kvm", "6.6", "", "constant", "ignored"),
    ],
)
def test_a_way_has_a_module_and_versions(index, module, since, until, reads, writes):
    assert any(
        module in row.by
        and (row.since, row.until, row.reads, row.writes) == (since, until, reads, writes)
        for row in handling(index)
    )


def test_what_no_kvm_knows_has_no_row():
    assert handling(0x35) == ()
    (row,) = handling(0x391)  # nor does any KVM know this one, but one might
    assert (row.by, row.doubt) == ((), "rw")


@pytest.mark.parametrize(
    "row",
    [
        'first = 1, by = "kvm_pvm", reads = "emulated"',
        'first = 1, by = "kvm", reads = "ignored"',
        'first = 1, by = "kvm"',
        'first = 1, reads = "emulated"',
        'first = 1, by = "kvm", reads = "emulated", doubt = "w"',
        'first = 1, by = "kvm", raeds = "emulated"',
    ],
)
def test_a_row_that_is_not_valid_is_refused(tmp_path, row):
    (tmp_path / "kvm.toml").write_text(f"row = [{{ {row} }}]")
    with pytest.raises(CatalogError, match=r"kvm\.toml"):
        read_handling(tmp_path / "kvm.toml")
