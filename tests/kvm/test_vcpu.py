"""vCPU handles: running, exits, and everything that can be read and set."""

import pytest

from kvmsr.abi import Cap, GuestDbg, Mp, SyncReg, cpu
from kvmsr.errors import IoctlError, MsrListError, UsageError
from kvmsr.kvm.exits import (
    Debug,
    Hlt,
    IoIn,
    IoOut,
    IrqWindowOpen,
    MmioRead,
    MmioWrite,
    Shutdown,
)
from kvmsr.machine.cpustate import Mode, Start, apply_start
from tests.conftest import need_cap
from tests.harness import CODE, MSR, Guest

# Exits


def test_out_and_in(guest):
    guest.load(b"\xe6\x80" + b"\xe5\x81" + b"\xf4", rax=0x42)  # out %al, $0x80; in $0x81, %ax
    out = guest.vcpu.run()
    assert isinstance(out, IoOut)
    assert (out.port, out.size, out.count, bytes(out.data)) == (0x80, 1, 1, b"\x42")
    in_ = guest.vcpu.run()
    assert isinstance(in_, IoIn)
    assert (in_.port, in_.size) == (0x81, 2)
    in_.data[:] = b"\x34\x12"
    assert isinstance(guest.vcpu.run(), Hlt)
    assert guest.vcpu.get_regs().rax == 0x1234


def test_string_output(guest):
    guest.put(0x3000, b"hello")
    guest.load(b"\xf3\x6e\xf4", rsi=0x3000, rcx=5, rdx=0xE9)  # rep outsb
    sent = b""
    while isinstance(exit_ := guest.vcpu.run(), IoOut):
        sent += bytes(exit_.data)
    assert sent == b"hello"


def test_memory_that_is_not_there(guest):
    sregs = guest.vcpu.get_sregs()
    sregs.ds.base = 0x400000
    guest.vcpu.set_sregs(sregs)
    guest.load(b"\xa3\x10\x00" + b"\xa1\x20\x00" + b"\xf4", rax=0x1234)
    write = guest.vcpu.run()
    assert isinstance(write, MmioWrite)
    assert (write.address, bytes(write.data)) == (0x400010, b"\x34\x12")
    load = guest.vcpu.run()
    assert isinstance(load, MmioRead)
    assert load.address == 0x400020
    load.data[:] = b"\xcd\xab"
    assert isinstance(guest.vcpu.run(), Hlt)
    assert guest.vcpu.get_regs().rax == 0xABCD


def test_a_triple_fault(guest):
    apply_start(guest.vm, guest.vcpu, Start(Mode.LONG, 0x10000))  # its IDT is empty
    guest.put(0x10000, b"\x0f\x0b")  # ud2
    assert isinstance(guest.vcpu.run(), Shutdown)


def test_single_step(guest):
    guest.load(b"\x90\x90\xf4")
    guest.vcpu.set_guest_debug(GuestDbg.ENABLE | GuestDbg.SINGLESTEP)
    for n in (1, 2):
        exit_ = guest.vcpu.run()
        assert isinstance(exit_, Debug)
        assert exit_.pc == CODE + n
        assert exit_.dr6 & 1 << 14
    guest.vcpu.set_guest_debug(0)
    assert isinstance(guest.vcpu.run(), Hlt)


def test_a_single_step_over_an_access_ends_in_complete_pending(guest):
    guest.load(b"\x0f\x32\x90", rcx=MSR)
    guest.vcpu.set_guest_debug(GuestDbg.ENABLE | GuestDbg.SINGLESTEP)
    guest.vcpu.run().answer(1)
    exit_ = guest.vcpu.complete_pending()
    assert isinstance(exit_, Debug)
    assert exit_.pc == CODE + 2


# State


def test_registers_are_read_back(guest):
    vcpu = guest.vcpu
    regs = cpu.Regs(rax=1, r15=(1 << 64) - 1, rip=0x1234, rflags=2)
    vcpu.set_regs(regs)
    assert vcpu.get_regs() == regs
    fpu = vcpu.get_fpu()
    fpu.mxcsr = 0x1F80
    fpu.xmm[3][0] = 0x77
    vcpu.set_fpu(fpu)
    assert vcpu.get_fpu().xmm[3][0] == 0x77
    debug = vcpu.get_debugregs()
    debug.db[1] = 0x1234
    vcpu.set_debugregs(debug)
    assert vcpu.get_debugregs().db[1] == 0x1234
    sregs = vcpu.get_sregs()
    sregs.gs.base = 0x5000
    vcpu.set_sregs(sregs)
    assert vcpu.get_sregs().gs.base == 0x5000
    assert vcpu.get_sregs2().gs.base == 0x5000
    vcpu.set_sregs2(vcpu.get_sregs2())
    area = vcpu.get_xsave()
    assert len(area) >= 4096
    vcpu.set_xsave(area)
    assert vcpu.get_xsave() == area
    if guest.kvm.check_extension(Cap.XCRS):
        xcrs = vcpu.get_xcrs()
        vcpu.set_xcrs(xcrs)
        assert vcpu.get_xcrs() == xcrs
    events = vcpu.get_vcpu_events()
    vcpu.set_vcpu_events(events)
    assert vcpu.get_vcpu_events() == events


def test_structures_compare_copy_and_show_themselves():
    regs = cpu.Regs(rax=0x35)
    copy = regs.copy()
    copy.rbx = 1
    assert regs != copy
    assert regs.rbx == 0
    assert regs != cpu.Sregs()
    assert "rax=0x35" in repr(regs)
    assert "pdptrs=[0, 0, 0, 0]" in repr(cpu.Sregs2())


def test_mp_state_and_lapic(guest_with_irqchip):
    vcpu = guest_with_irqchip.vcpu
    assert vcpu.get_mp_state() is Mp.RUNNABLE
    vcpu.set_mp_state(Mp.HALTED)
    assert vcpu.get_mp_state() is Mp.HALTED
    lapic = vcpu.get_lapic()
    vcpu.set_lapic(lapic)
    assert vcpu.get_lapic() == lapic


def test_translation(guest):
    assert guest.vcpu.translate(0x1234) == 0x1234


def test_registers_through_the_page(guest):
    vcpu = guest.vcpu
    guest.load(b"\xe6\x80\xf4", rax=7)
    vcpu.valid_regs = SyncReg.REGS | SyncReg.SREGS
    assert isinstance(vcpu.run(), IoOut)
    assert vcpu.sync_regs.regs.rax == 7
    assert vcpu.sync_regs.sregs.cs.base == 0
    assert vcpu.complete_pending() is None
    vcpu.sync_regs.regs.rax = 9
    vcpu.dirty_regs = SyncReg.REGS
    vcpu.run()
    assert vcpu.get_regs().rax == 9
    assert vcpu.dirty_regs == SyncReg(0)


# CPUID and MSRs


def test_cpuid_is_set(guest, kvm):
    table = kvm.get_supported_cpuid()
    guest.vcpu.set_cpuid2(table)
    assert guest.vcpu.get_cpuid2().find(0) == table.find(0)
    assert kvm.get_emulated_cpuid() is not None
    assert table.find(0x7777) is None


def test_msrs_come_in_any_number(guest, kvm):
    listed = kvm.get_msr_index_list()
    many = [*listed] * (1 + 600 // len(listed))
    assert len(many) > 510
    values = guest.vcpu.get_msrs(many)
    assert set(values) == set(listed)
    assert guest.vcpu.get_msrs([]) == {}
    guest.vcpu.set_msrs([(0x174, n) for n in range(600)])
    assert guest.vcpu.get_msrs([0x174]) == {0x174: 599}
    guest.vcpu.set_msrs({0x174: 1, 0x175: 2})
    assert guest.vcpu.get_msrs([0x175, 0x174]) == {0x175: 2, 0x174: 1}


@pytest.mark.parametrize("at", [0, 3, 255, 300])
def test_the_msr_that_kvm_refuses_is_named(guest, at):
    indices = [0x174] * at + [MSR] + [0x174] * 3
    with pytest.raises(MsrListError, match=rf"MSR {MSR:#x}, entry {at + 1} of {at + 4}") as caught:
        guest.vcpu.get_msrs(indices)
    assert (caught.value.index, caught.value.done, caught.value.total) == (MSR, at, at + 4)
    with pytest.raises(MsrListError, match=rf"KVM_SET_MSRS: KVM refuses MSR {MSR:#x} = 0x5"):
        guest.vcpu.set_msrs([(index, 5) for index in indices])


def test_feature_msrs_of_the_system(kvm):
    listed = kvm.get_msr_feature_index_list()
    assert set(kvm.get_feature_msrs(listed)) == set(listed)
    with pytest.raises(MsrListError):
        kvm.get_feature_msrs([MSR])


def test_statistics(guest):
    need_cap(guest.kvm, Cap.BINARY_STATS_FD)
    stats = guest.vcpu.stats()
    assert stats["halt_exits"].kind == "cumulative"
    assert guest.vm.stats()


def test_nmi_and_interrupts_are_queued(guest):
    guest.vcpu.nmi()
    assert guest.vcpu.get_vcpu_events().nmi.pending
    guest.vcpu.interrupt(0x20)
    assert guest.vcpu.get_vcpu_events().interrupt.nr == 0x20


# Misuse


def test_an_ioctl_that_fails_is_named_with_its_error(guest):
    with pytest.raises(IoctlError, match=r"KVM_ENABLE_CAP \(capability 9999\) failed.*\[EINVAL\]"):
        guest.vm.enable_cap(9999)
    with pytest.raises(IoctlError, match="there is already a vCPU with this number"):
        guest.vm.create_vcpu(0)


def test_a_closed_handle_is_refused(kvm):
    guest = Guest(kvm)
    guest.close()
    with pytest.raises(UsageError, match="this Vcpu is closed"):
        guest.vcpu.get_regs()
    guest.vcpu.close()  # again is harmless


@pytest.mark.parametrize("index, value", [(1 << 32 | 0x174, 5), (-1, 5), (0x174, 1 << 64)])
def test_msrs_out_of_range_are_refused(guest, index, value):
    guest.vcpu.set_msrs({0x174: 1})
    with pytest.raises(UsageError, match="32 bits"):
        guest.vcpu.set_msrs([(0x174, 2), (index, value)])
    assert guest.vcpu.get_msrs([0x174]) == {0x174: 1}
    if value == 5:
        with pytest.raises(UsageError):
            guest.vcpu.get_msrs([index])


def test_misspelt_registers_are_refused():
    with pytest.raises(AttributeError):
        cpu.Regs(rpi=5)
    with pytest.raises(AttributeError):
        cpu.Regs().rxa = 5


def test_a_capability_argument_of_more_than_64_bits_is_refused(guest):
    with pytest.raises(UsageError, match="64 bits"):
        guest.vm.enable_cap(188, 1 << 64)


def test_an_interrupt_window(guest):
    guest.load(b"\x90\xfb\x90\xeb\xfe")  # nop; sti; nop; jmp .
    guest.vcpu.request_interrupt_window = True
    assert isinstance(guest.vcpu.run(), IrqWindowOpen)
    assert guest.vcpu.if_flag
    assert guest.vcpu.ready_for_interrupt_injection
    assert guest.vcpu.cr8 == 0
