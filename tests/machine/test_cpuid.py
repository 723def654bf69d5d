"""The CPUID that each vCPU sees."""

import pytest

from kvmsr.errors import UsageError
from kvmsr.kvm import CpuidEntry, CpuidTable
from kvmsr.machine.cpuid import Choice, guest_cpuid, has, to_features
from kvmsr.msr import enumerated, features
from kvmsr.policy import Policy, Rule


def entry(function, index=0, flags=0, **registers):
    values = dict.fromkeys(("eax", "ebx", "ecx", "edx"), 0) | registers
    return CpuidEntry(function, index, flags, **values)


FULL = (1 << 32) - 1
SUPPORTED = CpuidTable(
    [
        entry(0, eax=0x1F),
        entry(1, ebx=FULL, ecx=FULL & ~(1 << 24), edx=FULL),
        entry(7, 0, 1, ebx=FULL, ecx=FULL, edx=FULL),
        entry(7, 1, 1, eax=FULL),
        entry(0xB, 0, 1),
        entry(0xB, 1, 1),
        entry(0xB, 2, 1),
        entry(0x80000008, ecx=FULL),
        entry(0x8000001E, eax=FULL),
    ]
)


def test_each_vcpu_has_its_apic_id_and_the_same_topology():
    for vcpu in range(3):
        table = guest_cpuid(SUPPORTED, vcpu, 3, tsc_deadline=True)
        assert table.find(1).ebx >> 24 == vcpu
        assert table.find(1).ebx >> 16 & 0xFF == 3
        assert table.find(1).edx >> 28 & 1
        assert table.find(1).ecx >> 24 & 1
        smt, core = table.find(0xB, 0), table.find(0xB, 1)
        assert (smt.eax, smt.ebx, smt.ecx, smt.edx) == (0, 1, 0x100, vcpu)
        assert (core.eax, core.ebx, core.ecx, core.edx) == (2, 3, 0x201, vcpu)
        assert table.find(0xB, 2).ecx == 2
        assert table.find(0x80000008).ecx == 2 << 12 | 2
        assert table.find(0x8000001E).eax == vcpu
    assert not guest_cpuid(SUPPORTED, 0, 1).find(1).edx >> 28 & 1
    assert not guest_cpuid(SUPPORTED, 0, 1).find(1).ecx >> 24 & 1


def test_the_topology_is_whole_where_kvm_gives_one_level():
    one_level = SUPPORTED.replace(lambda e: None if e.function == 0xB and e.index else e)
    assert guest_cpuid(one_level, 1, 3) == guest_cpuid(SUPPORTED, 1, 3)
    none = SUPPORTED.replace(lambda e: None if e.function == 0xB else e)
    assert guest_cpuid(none, 1, 3).find(0xB) is None


def test_features_are_hidden():
    hidden = to_features(["x2apic", "smep", "tsc-deadline", "avx-vnni"], "hidden")
    table = guest_cpuid(SUPPORTED, 0, 1, Choice(hidden=tuple(hidden)), tsc_deadline=True)
    assert table.find(1).ecx == FULL & ~(1 << 21) & ~(1 << 24)
    assert table.find(7, 0).ebx == FULL & ~(1 << 7)
    assert table.find(7, 1).eax == FULL & ~(1 << 4)


def supported(vendor, most=6):
    ebx, edx, ecx = (int.from_bytes(vendor[n : n + 4].encode(), "little") for n in (0, 4, 8))
    extended = entry(0x80000000, eax=0x80000001)
    return CpuidTable([entry(0, eax=most, ebx=ebx, ecx=ecx, edx=edx), entry(1), extended])


INTEL, AMD = supported("GenuineIntel", 5), supported("AuthenticAMD")
METERS = Policy(
    [
        Rule([0xE7, 0xE8, 0x1B0], "shadow", "shadow"),
        Rule([0xC0010299, 0xC001029B], 7),
        Rule(0x19C, "fault"),
        Rule(0x1AD, "ignore"),
        Rule([0x770, 0x771], "shadow"),  # HWP has more of them
        Rule([0xC00000E7, 0xC00000E8], "kernel"),
    ]
)


def test_a_guest_sees_the_features_whose_msrs_the_policy_answers():
    for table, names in ((INTEL, ["aperfmperf", "epb"]), (AMD, ["aperfmperf", "rapl"])):
        choice = Choice.make(METERS, table)
        assert [one.name for one in choice.added] == names
        assert all(name in choice.notes[0] for name in names)
        seen = guest_cpuid(table, 0, 1, choice)
        assert [one.name for one in enumerated() if has(seen, one.feature)] == names
        assert seen.find(0).eax >= 6
    assert guest_cpuid(AMD, 0, 1, Choice.make(METERS, AMD)).find(0x80000000).eax == 0x80000007
    assert guest_cpuid(AMD, 0, 1).find(0x80000000).eax == 0x80000001


def test_the_owner_may_hide_them_and_what_kvm_has_is_no_addition():
    choice = Choice.make(METERS, INTEL, hidden=to_features(["epb", "aperfmperf"], "hidden"))
    assert guest_cpuid(INTEL, 0, 1, choice).find(6) is None
    assert choice.notes == []
    has_it = CpuidTable([*INTEL, entry(6, ecx=0b1001)])
    assert Choice.make(METERS, has_it).added == ()


def test_what_needs_a_hidden_feature_is_hidden_too():
    policy = Policy([Rule("0x770-0x777", "shadow")])
    names = [one.name for one in Choice.make(policy, INTEL).added]
    assert names == ["hwp", "hwp_epp", "hwp_notify", "hwp_pkg_req"]
    assert Choice.make(policy, INTEL, hidden=to_features(["hwp"], "hidden")).added == ()
    one_less = Choice.make(policy, INTEL, hidden=to_features(["hwp_epp"], "hidden"))
    assert [one.name for one in one_less.added] == ["hwp", "hwp_notify", "hwp_pkg_req"]


def test_a_feature_cannot_be_both_required_and_hidden():
    epb = to_features(["epb"], "shown")
    with pytest.raises(UsageError, match=r"epb \(CPUID.06H:ECX\[3\]\) is both required and hidden"):
        Choice.make(METERS, INTEL, epb, epb)


def test_a_required_feature_is_there_or_the_message_says_what_is():
    table = CpuidTable([*INTEL, entry(7, 0, 1, ebx=1 << 7)])
    Choice.make(METERS, table, to_features(["epb", "smep"], "shown"))
    Choice.make(METERS, table, to_features(["tsc-deadline"], "shown"), tsc_deadline=True)
    for name, why in (
        ("smap", r"the CPUID feature smap \(CPUID.07H:EBX\[20\]\); to be had .*: aperfmperf, epb"),
        ("tsc-deadline", "tsc_deadline_timer"),
        ("hwp", r"hwp \(CPUID.06H:EAX\[7\], Intel\); it comes with rules that answer IA32_PM_EN"),
        ("rapl", r"CPUID.80000007H:EDX\[14\], AMD\); it comes with .*ENERGY_STATUS; to be had"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=why) as caught:
            Choice.make(METERS, table, to_features([name], "shown"))
        assert "\n" not in str(caught.value)


def test_names_lead_to_bits():
    known = features()
    assert (known["sse4_2"].function, known["sse4_2"].register, known["sse4_2"].bit) == (
        1,
        "ecx",
        20,
    )
    assert known["sse4.2"] == known["sse4_2"]
    assert (known["nx"].function, known["nx"].bit) == (0x80000001, 20)
    assert (known["arch_capabilities"].register, known["arch_capabilities"].bit) == ("edx", 29)
    assert (known["kvm-asyncpf-int"].function, known["kvm-asyncpf-int"].bit) == (0x40000001, 14)
    assert all(0 <= feature.bit < 32 for feature in known.values())
    places = [(f.function, f.index, f.register, f.bit) for f in set(known.values())]
    assert len(places) == len(set(places))
