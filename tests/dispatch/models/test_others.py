"""Microcode, feature control, SMIs, machine checks, AMD's registers, mitigations, crashes."""

import pytest

from kvmsr.errors import PolicyError
from kvmsr.policy import Topology
from tests.dispatch.models.rig import FAULT, Rig

# Microcode


def test_intels_dance_gives_the_revision():
    rig = Rig("microcode.intel", [0x79, 0x8B], revision=0xD6, updated=0xF0)
    assert rig.write(0x8B, 0) is None
    assert rig.read(0x8B) == 0xD6 << 32
    assert rig.read(0x79) == FAULT
    assert rig.write(0x79, 0xFFFF_8880_1234_5678) is None
    assert rig.write(0x8B, 0) is None
    assert rig.read(0x8B) == 0xF0 << 32
    assert rig.notes == ["the guest loads microcode from 0xffff888012345678 on vCPU 0"]


def test_an_update_without_a_new_revision_changes_nothing():
    rig = Rig("microcode.intel", [0x79, 0x8B], revision=7)
    rig.write(0x79, 0x1000)
    assert rig.read(0x8B) == 7 << 32


def test_amds_patch_level_is_below():
    rig = Rig("microcode.amd", [0x8B, 0xC0010020], level=0x0A101148, updated=0x0A101150)
    assert rig.read(0x8B) == 0x0A101148
    rig.write(0xC0010020, 0x5000)
    assert rig.read(0x8B) == 0x0A101150
    assert rig.read(0xC0010020) == FAULT


def test_each_core_is_updated_by_itself():
    rig = Rig("microcode.intel", [0x79, 0x8B], vcpus=4, topology=Topology(2), revision=1, updated=2)
    rig.write(0x79, 0, vcpu=1)
    assert [rig.read(0x8B, vcpu) >> 32 for vcpu in range(4)] == [2, 2, 1, 1]


# Feature control


def test_the_lock_holds():
    rig = Rig("feature-control", [0x3A], vmx=True)
    assert rig.read(0x3A) == 5
    assert rig.write(0x3A, 5) == FAULT
    rig = Rig("feature-control", [0x3A], locked=False)
    assert rig.read(0x3A) == 0
    assert rig.write(0x3A, 1 << 21) == FAULT
    assert rig.write(0x3A, 4) is None
    assert rig.write(0x3A, 5) is None
    assert rig.read(0x3A) == 5
    assert rig.write(0x3A, 0) == FAULT


# SMIs


def test_smis_come_as_often_as_said():
    rig = Rig("smi-count", [0x34], count=10, per_minute=6)
    assert rig.read(0x34) == 10
    rig.seconds(30)
    assert rig.read(0x34) == 13
    assert rig.write(0x34, 0) == FAULT
    other = rig.reborn(Rig("smi-count", [0x34], count=10, per_minute=6))
    other.seconds(30)
    assert other.read(0x34) == 16


# Machine checks

BANKS = [0x179, 0x17A, 0x17B, "0x280-0x29f", "0x400-0x47f"]
STATUS = 0x9C00_0040_0001_009F


def test_banks_are_there_and_no_more():
    rig = Rig("mce", BANKS, banks=4)
    assert rig.read(0x179) == 4 | 1 << 8
    assert rig.read(0x401) == 0
    assert rig.read(0x17B) == 2**64 - 1
    assert rig.write(0x400, 0xF) is None
    assert rig.read(0x400) == 0xF
    assert rig.write(0x401, 0) is None
    assert rig.write(0x401, 1) == FAULT
    assert rig.write(0x402, 7) is None
    assert rig.read(0x410) == rig.read(0x284) == FAULT
    assert rig.write(0x283, 1 << 30 | 5) is None
    assert rig.write(0x283, 1 << 31) == FAULT
    assert rig.write(0x17A, 8) == FAULT


def test_an_error_comes_when_its_time_has():
    error = {"bank": 2, "status": STATUS & ~(1 << 63), "addr": 0x1234_5000, "after": 5}
    rig = Rig("mce", BANKS, inject=[error, {**error, "addr": 9, "after": 6}])
    rig.seconds(4)
    assert rig.read(0x409) == 0
    rig.seconds(1)
    assert (rig.read(0x409), rig.read(0x40A)) == (STATUS, 0x1234_5000)
    rig.seconds(1)
    assert (rig.read(0x409), rig.read(0x40A)) == (STATUS | 1 << 62, 0x1234_5000)
    assert rig.write(0x409, 0) is None
    assert rig.read(0x409) == 0


def test_an_error_comes_once_in_all_lives():
    error = {"status": STATUS, "after": 1}
    rig = Rig("mce", BANKS, inject=[error])
    rig.seconds(2)
    assert rig.read(0x401) == STATUS
    rig.write(0x401, 0)
    other = rig.reborn(Rig("mce", BANKS, inject=[error]))
    other.seconds(5)
    assert other.read(0x401) == 0


def test_an_error_needs_a_bank():
    with pytest.raises(PolicyError, match="there are 2 banks"):
        Rig("mce", BANKS, banks=2, inject=[{"bank": 2, "status": 1}])


# AMD


def test_pstates():
    rig = Rig("amd.pstates", ["0xc0010061-0xc001006b"], mhz=[3000, 2200, 1500])
    assert rig.read(0xC0010061) == 2 << 4
    definitions = [rig.read(0xC0010064 + n) for n in range(4)]
    # CoreCOF = CpuFid / CpuDfsId * 200 MHz
    assert [200 * (d & 0xFF) // max(d >> 8 & 0x3F, 1) for d in definitions] == [3000, 2200, 1500, 0]
    assert [d >> 63 for d in definitions] == [1, 1, 1, 0]
    assert rig.write(0xC0010062, 1) is None
    assert rig.read(0xC0010063) == 1
    assert rig.write(0xC0010062, 7) is None
    assert rig.read(0xC0010063) == 2
    assert rig.write(0xC0010062, 8) == FAULT
    with pytest.raises(PolicyError, match="multiple of 25"):
        Rig("amd.pstates", ["0xc0010061-0xc001006b"], mhz=[3010])


def test_boot_registers_keep_what_is_written():
    rig = Rig("amd.boot", [0xC0010015, 0xC001001F, 0xC0010055, 0xC0011029])
    assert rig.read(0xC0010015) == 1 << 24 | 1
    assert rig.write(0xC0010015, 1 << 24 | 1 << 18) is None
    assert rig.read(0xC0010015) == 1 << 24 | 1 << 18 | 1
    rig.write(0xC001001F, 1 << 46)
    assert rig.read(0xC001001F) == 1 << 46
    assert rig.read(0xC0011029) == 2
    assert rig.write(0xC0011029, 1 << 32) == FAULT


# Mitigations


def test_what_a_cpu_model_suffers_from():
    rig = Rig("mitigations", [0x48, 0x10A], cpu="icelake-server", flags=["gds_no"])
    assert rig.read(0x10A) == 0x16B | 1 << 26
    assert rig.write(0x10A, 0) == FAULT
    assert rig.write(0x48, 5) is None
    assert rig.read(0x48) == 5
    assert rig.write(0x48, 8) == FAULT
    with pytest.raises(PolicyError):
        Rig("mitigations", [0x10A], flags=["meltdown"])


# Crashes

CRASH = ["0x40000100-0x40000105"]


def crash(rig, control, *codes):
    for number, code in enumerate(codes):
        rig.write(0x40000100 + number, code)
    rig.write(0x40000105, control)


def test_a_stop_code_is_reported():
    rig = Rig("hyperv.crash", CRASH)
    assert rig.read(0x40000105) == 3 << 62
    crash(rig, 1 << 63, 0x7B, 0xFFFFF80312345678, 2, 3, 4)
    assert rig.notes == [
        "the guest crashed on vCPU 0: stop code 0x7b, parameters 0xfffff80312345678, 0x2, 0x3, 0x4"
    ]
    assert rig.read(0x40000100) == 0x7B


def test_a_message_is_read_out_of_the_guests_memory():
    texts = {(0x9000, 16): b"Kernel panic\n\0\0\0"}
    rig = Rig("hyperv.crash", CRASH, memory=lambda address, size: texts.get((address, size)))
    crash(rig, 3 << 62, 1, 2, 3, 0x9000, 16)
    crash(rig, 3 << 62, 1, 2, 3, 0xA000, 99)
    assert rig.notes == [
        "the guest crashed on vCPU 0: stop code 0x1, parameters 0x2, 0x3: Kernel panic",
        "the guest crashed on vCPU 0: stop code 0x1, parameters 0x2, 0x3:"
        " a message of 99 bytes at 0xa000",
    ]
