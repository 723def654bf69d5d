"""The CPUID that each vCPU sees."""

from kvmsr.kvm import CpuidEntry, CpuidTable
from kvmsr.machine.cpuid import features, guest_cpuid, to_features


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
    hidden = to_features(["x2apic", "smep", "tsc-deadline", "avx-vnni"])
    table = guest_cpuid(SUPPORTED, 0, 1, hidden, tsc_deadline=True)
    assert table.find(1).ecx == FULL & ~(1 << 21) & ~(1 << 24)
    assert table.find(7, 0).ebx == FULL & ~(1 << 7)
    assert table.find(7, 1).eax == FULL & ~(1 << 4)


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
