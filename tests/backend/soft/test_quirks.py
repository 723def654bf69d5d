"""KVM_CAP_DISABLE_QUIRKS2: what KVM does otherwise than a CPU, unless it is told not to."""

import errno
from dataclasses import replace

import pytest

from kvmsr.abi import Cap, Quirk
from kvmsr.kvm import exits
from tests.conformance import code
from tests.conformance.guest import CODE
from tests.conformance.outcome import DONE, GP, UD
from tests.conformance.registry import errno_of

MONITOR, MWAIT = b"\x0f\x01\xc8", b"\x0f\x01\xc9"
VMCALL, VMMCALL = b"\x0f\x01\xc1", b"\x0f\x01\xd9"
SCHED_YIELD = 11
MISC_ENABLE, MWAIT_ENABLED, MWAIT_LEAF_BIT = 0x1A0, 1 << 18, 1 << 3
LVT0, EXTINT, MASKED = 0x350, 0x700, 0x10000
APIC_BASE, LAPIC, ONES = 0x1B, 0xFEE00000, 0xFFFFFFFF
PF = 14


def disable(cpu, quirks):
    cpu.vm.enable_cap(Cap.DISABLE_QUIRKS2, quirks)


def execute(cpu, body, **registers):
    cpu.load(body + code.MARKER, **registers)
    return cpu.finish()


def test_the_capability_says_which(world):
    kvm = world()
    vm = kvm.vm()
    assert kvm.kvm.check_extension(Cap.DISABLE_QUIRKS2) == sum(Quirk)
    assert errno_of(vm.enable_cap, Cap.DISABLE_QUIRKS2, 1 << 20) == errno.EINVAL
    assert errno_of(vm.enable_cap, Cap.DISABLE_QUIRKS, 1 << 20) == 0  # which never looked


@pytest.mark.parametrize(
    ("profile", "own", "other"),
    [("linux-6.1-amd", VMMCALL, VMCALL), ("linux-6.1-intel", VMCALL, VMMCALL)],
)
def test_the_other_vendors_hypercall_is_patched_to_the_cpus(world, profile, own, other):
    cpu = world(profile).cpu()
    assert execute(cpu, other, rax=SCHED_YIELD) == DONE
    assert cpu.regs.rax == 0
    assert bytes(cpu.memory.view[CODE : CODE + 3]) == own
    disable(cpu, Quirk.FIX_HYPERCALL_INSN)
    assert execute(cpu, other, rax=SCHED_YIELD) == UD
    assert bytes(cpu.memory.view[CODE : CODE + 3]) == other
    assert execute(cpu, own, rax=SCHED_YIELD) == DONE


def test_where_code_is_read_only_that_is_a_page_fault(world):
    cpu = world().cpu()
    cpu.put(0x4000, (0x81).to_bytes(8, "little"))  # the page directory's entry: present, large
    cpu.load(VMCALL + code.MARKER, rax=SCHED_YIELD)
    seen = cpu.run()
    assert isinstance(seen, exits.Shutdown)  # the handler's frame cannot be pushed either


def test_monitor_and_mwait_do_nothing_or_are_undefined(world):
    kvm = world()
    cpu = kvm.cpu(cpuid=kvm.cpuid)  # which does not have them
    for instruction in (MONITOR, MWAIT):
        assert execute(cpu, instruction) == DONE
        disable(cpu, Quirk.MWAIT_NEVER_UD_FAULTS)
        assert execute(cpu, instruction) == UD
        disable(cpu, 0)
    user = kvm.cpu("user", cpuid=kvm.cpuid)
    assert execute(user, MONITOR) == UD


def has_mwait(cpu):
    return bool(cpu.vcpu.get_cpuid2().find(1).ecx & MWAIT_LEAF_BIT)


def test_misc_enable_decides_about_mwait_in_cpuid(world):
    kvm = world()
    cpu = kvm.cpu(cpuid=kvm.cpuid)
    value = cpu.get(MISC_ENABLE)
    assert cpu.write(MISC_ENABLE, value | MWAIT_ENABLED) == DONE
    assert not has_mwait(cpu)
    disable(cpu, Quirk.MISC_ENABLE_NO_MWAIT)
    assert cpu.write(MISC_ENABLE, value) == DONE
    assert cpu.write(MISC_ENABLE, value | MWAIT_ENABLED) == DONE
    assert has_mwait(cpu)
    assert execute(cpu, b"\x0f\xa2", rax=1) == DONE  # cpuid
    assert cpu.regs.rcx & MWAIT_LEAF_BIT
    assert cpu.write(MISC_ENABLE, value) == DONE
    assert not has_mwait(cpu)


def test_not_without_sse3(world):
    kvm = world()
    without = kvm.cpuid.replace(lambda e: replace(e, ecx=e.ecx & ~1) if e.function == 1 else e)
    cpu = kvm.cpu(cpuid=without, mask=0)
    disable(cpu, Quirk.MISC_ENABLE_NO_MWAIT)
    assert cpu.write(MISC_ENABLE, cpu.get(MISC_ENABLE) | MWAIT_ENABLED) == GP


def lvt0(vcpu):
    return int.from_bytes(bytes(vcpu.get_lapic().regs[LVT0 : LVT0 + 4]), "little")


@pytest.mark.parametrize(("quirks", "expected"), [(0, EXTINT), (Quirk.LINT0_REENABLED, MASKED)])
def test_lint0_after_reset(world, quirks, expected):
    cpu = world().cpu(irqchip=True, prepare=lambda vm: vm.enable_cap(Cap.DISABLE_QUIRKS2, quirks))
    assert lvt0(cpu.vcpu) == expected


def test_what_is_where_a_disabled_local_apic_was(world):
    kvm = world()
    load = b"\x8b\x03"  # mov (%rbx), %eax
    for quirks, there in ((0, True), (Quirk.LAPIC_MMIO_HOLE, False)):
        cpu = kvm.cpu("real", irqchip=True, cpuid=kvm.cpuid)
        disable(cpu, quirks)
        sregs = cpu.vcpu.get_sregs()
        sregs.ds.base = LAPIC
        cpu.vcpu.set_sregs(sregs)
        load = b"\x66\xa1\x30\x00"  # mov 0x30, %eax: the version
        assert execute(cpu, load) == DONE
        assert cpu.regs.rax & 0xFF == 0x14
        assert cpu.write(APIC_BASE, cpu.get(APIC_BASE) & ~(1 << 11)) == DONE
        cpu.load(load + code.MARKER)
        if there:
            assert cpu.finish() == DONE
            assert cpu.regs.rax == ONES
        else:
            assert cpu.run_to(exits.MmioRead).address == LAPIC + 0x30


@pytest.mark.parametrize("quirks", [0, Quirk.OUT_7E_INC_RIP])
def test_rip_at_an_out_to_port_0x7e(world, quirks):
    cpu = world().cpu()
    disable(cpu, quirks)
    cpu.load(b"\xe6\x7e" + code.MARKER)
    cpu.run_to(exits.IoOut)
    assert cpu.regs.rip == CODE + (0 if quirks else 2)
    assert cpu.finish() == DONE
