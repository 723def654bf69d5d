"""Which CPU a user means."""

import pytest

from kvmsr.errors import UsageError
from kvmsr.msr import Cpu, cpu_names, find_cpu
from kvmsr.msr.cpu import cpu_sets


@pytest.mark.parametrize(
    ("spec", "cpu", "name"),
    [
        ("intel:06_8F", Cpu("intel", 6, 0x8F), "sapphire-rapids"),
        ("INTEL:06_8f", Cpu("intel", 6, 0x8F), "sapphire-rapids"),
        ("sapphire-rapids", Cpu("intel", 6, 0x8F), "sapphire-rapids"),
        ("Sapphire Rapids", Cpu("intel", 6, 0x8F), "sapphire-rapids"),
        ("amd:19_01", Cpu("amd", 0x19, 1), "zen3"),
        ("milan", Cpu("amd", 0x19, 1), "zen3"),
        ("intel:06_55.7", Cpu("intel", 6, 0x55, 7), "cascade-lake"),
        ("cooper-lake", Cpu("intel", 6, 0x55, 15), "cooper-lake"),
        ("amd:19_F0", Cpu("amd", 0x19, 0xF0), ""),
    ],
)
def test_a_cpu_is_found(spec, cpu, name):
    assert find_cpu(spec) == cpu
    assert cpu.name == name
    assert find_cpu(str(cpu)) == cpu


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("saphire-rapids", "no CPU is called 'saphire-rapids'; did you mean sapphire-rapids"),
        ("qqq", "write intel:06_8F, zen4 or host"),
        ("intel:6", "VENDOR:FAMILY_MODEL, both in two hexadecimal digits"),
        ("intel", "more than one CPU"),
        ("intel:06_97-9A", "more than one CPU"),
        ("./nowhere", "cannot read CPUID dump 'nowhere': No such file"),
    ],
)
def test_what_is_no_cpu_is_refused(spec, message):
    with pytest.raises(UsageError, match=message):
        find_cpu(spec)


INTEL, AMD = "756e6547", "68747541"
DUMPS = {
    "cpuid -r": """CPU 0:
   0x00000000 0x00: eax=0x00000020 ebx=0x756e6547 ecx=0x6c65746e edx=0x49656e69
   0x00000001 0x00: eax=0x000806f8 ebx=0x00400800 ecx=0x7ffefbff edx=0xbfebfbff
CPU 1:
   0x00000000 0x00: eax=0x00000020 ebx=0x756e6547 ecx=0x6c65746e edx=0x49656e69
   0x00000001 0x00: eax=0x000906ea ebx=0x00400800 ecx=0x7ffefbff edx=0xbfebfbff
""",
    "InstLatX64": """CPUID 00000000: 00000020-756E6547-6C65746E-49656E69
CPUID 00000001: 000806F8-00400800-7FFEFBFF-BFEBFBFF
""",
    "cpuinfo": "vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n"
    "model name\t: x\nstepping\t: 8\n\n",
}


@pytest.mark.parametrize("kind", DUMPS)
def test_a_dump_has_a_cpu(tmp_path, kind):
    dump = tmp_path / "dump"
    dump.write_text(DUMPS[kind])
    assert find_cpu(str(dump)) == Cpu("intel", 6, 0x8F, 8)


def test_a_code_name_comes_before_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zen4").write_text(DUMPS["cpuid -r"])
    (tmp_path / "mine").write_text(DUMPS["cpuid -r"])
    assert find_cpu("zen4").vendor == "amd"
    assert find_cpu("mine") == find_cpu("./zen4") == Cpu("intel", 6, 0x8F, 8)


def test_a_file_without_a_cpu_is_refused(tmp_path):
    (tmp_path / "x").write_text("nothing")
    with pytest.raises(UsageError, match="must be a CPUID dump with leaves 0 and 1"):
        find_cpu(str(tmp_path / "x"))


def test_this_machine_is_one():
    assert find_cpu("host").family in range(256)


def test_signatures_are_read_as_cpuid_has_them():
    assert Cpu.from_cpuid("AuthenticAMD", 0x00A00F11) == Cpu("amd", 0x19, 1, 1)
    assert Cpu.from_cpuid("HygonGenuine", 0x00900F02) == Cpu("amd", 0x18, 0, 2)
    assert Cpu.from_cpuid("CentaurHauls", 0x6F2).vendor == "CentaurHauls"


def test_no_cpu_has_two_code_names():
    names = [(name, one) for name, sets in cpu_names().items() for one in sets]
    both = [
        (name, other)
        for name, one in names
        for other, two in names
        if name < other and one.meets(two)
    ]
    assert both == []


def test_a_range_is_of_a_line_of_code_names():
    later = {str(one) for one in cpu_sets("alder-lake..")}
    assert {"intel:06_97", "intel:06_CC"} <= later
    assert not later & {"intel:06_8C-8D", "intel:06_8F"}
    assert [str(one) for one in cpu_sets("kaby-lake")] == ["intel:06_9E.0-9", "intel:06_8E.0-9"]
    assert [str(one) for one in cpu_sets("amd")] == ["amd"]
    assert str(cpu_sets("intel:06_97-9A")[0]) == "intel:06_97-9A"
    with pytest.raises(UsageError, match="skylake does not follow alder-lake"):
        cpu_sets("alder-lake..skylake")
