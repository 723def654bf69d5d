"""VM handles: memory, interrupts, clock."""

import os
import select
import threading
import time
from pathlib import Path

import pytest

from kvmsr.abi import Cap, Chip, MemFlag
from kvmsr.backend import Memory
from kvmsr.errors import CapabilityError, GuestMemoryError, IoctlError, UsageError
from kvmsr.kvm.exits import Hlt, IoOut
from tests.conftest import need_cap
from tests.harness import CODE, Guest


def test_capabilities(kvm, guest):
    assert kvm.api_version() == 12
    assert kvm.check_extension(Cap.X86_USER_SPACE_MSR) == 1
    assert guest.vm.check_extension(Cap.X86_MSR_FILTER) == 1
    kvm.require(Cap.USER_MEMORY, Cap.IRQCHIP)
    with pytest.raises(CapabilityError, match="lacks capability 9999"):
        kvm.require(Cap.USER_MEMORY, 9999)


def test_a_vcpu_keeps_its_number_when_it_is_closed(kvm):
    with kvm.create_vm() as vm:
        vm.create_vcpu(3).close()
        with pytest.raises(IoctlError, match="EEXIST"):
            vm.create_vcpu(3)


def test_memory_slots_come_and_go(guest):
    extra = Memory(0x2000)
    guest.vm.set_user_memory_region(1, 0x400000, extra)
    guest.vm.memory_at(0x400FFE, 4)[:] = b"abcd"
    assert bytes(extra.view[0xFFE:0x1002]) == b"abcd"
    with pytest.raises(UsageError, match="no memory slot holds"):
        guest.vm.memory_at(0x401FFF, 2)
    with pytest.raises(IoctlError, match="overlaps"):
        guest.vm.set_user_memory_region(2, 0x400000, extra)
    guest.vm.set_user_memory_region(1, 0x400000, None)
    with pytest.raises(UsageError):
        guest.vm.memory_at(0x400000, 1)
    extra.close()


@pytest.mark.parametrize("size", [0, -4096, 1, 4097, 1 << 62])
def test_memory_that_cannot_be_had(size):
    with pytest.raises(GuestMemoryError):
        Memory(size)


def test_the_dirty_log_tells_written_pages(guest):
    guest.vm.set_user_memory_region(0, 0, guest.memory, MemFlag.LOG_DIRTY_PAGES)
    guest.vm.get_dirty_log(0)
    guest.load(b"\xc6\x06\x00\x50\x01\xf4")  # movb $1, 0x5000
    assert isinstance(guest.vcpu.run(), Hlt)
    bitmap = int.from_bytes(guest.vm.get_dirty_log(0), "little")
    assert bitmap >> 5 & 1
    # On soft every page counts as written.
    assert bitmap >> 0x50 & 1 == (guest.kvm.backend.name == "soft")
    with pytest.raises(UsageError, match="no memory slot 9"):
        guest.vm.get_dirty_log(9)


def test_the_dirty_log_is_cleared_by_hand(guest):
    need_cap(guest.kvm, Cap.MANUAL_DIRTY_LOG_PROTECT2)
    guest.vm.enable_cap(Cap.MANUAL_DIRTY_LOG_PROTECT2, 1)
    guest.vm.set_user_memory_region(0, 0, guest.memory, MemFlag.LOG_DIRTY_PAGES)
    guest.load(b"\xc6\x06\x00\x50\x01\xf4")
    guest.vcpu.run()
    before = guest.vm.get_dirty_log(0)
    assert before == guest.vm.get_dirty_log(0)
    guest.vm.clear_dirty_log(0, 0, len(guest.memory) // 4096, before)
    assert not any(guest.vm.get_dirty_log(0))


def test_an_ioeventfd_takes_the_write(guest):
    need_cap(guest.kvm, Cap.IOEVENTFD)
    fd = os.eventfd(0)
    guest.vm.ioeventfd(fd, 0x80, 1, pio=True, datamatch=5)
    guest.load(b"\xe6\x80\xb0\x06\xe6\x80\xf4", rax=5)  # out 5, then 6
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, IoOut)
    assert bytes(exit_.data) == b"\x06"
    assert os.eventfd_read(fd) == 1
    guest.vm.ioeventfd(fd, 0x80, 1, pio=True, datamatch=5, assign=False)
    os.close(fd)


def test_an_irqfd_raises_its_line(guest_with_irqchip):
    need_cap(guest_with_irqchip.kvm, Cap.IRQFD)
    vm = guest_with_irqchip.vm
    fd = os.eventfd(0)
    vm.irqfd(fd, 3)
    state = vm.get_irqchip(Chip.PIC_MASTER)
    state.chip.pic.imr = 0
    vm.set_irqchip(state)
    os.eventfd_write(fd, 1)
    select.select([], [], [], 0.05)
    pic = vm.get_irqchip(Chip.PIC_MASTER).chip.pic
    assert pic.last_irr == 0  # irqfds pulse: the line is low again
    assert pic.irr & 1 << 3
    vm.irqfd(fd, 3, assign=False)
    os.close(fd)


def test_an_interrupt_line_has_a_level(guest_with_irqchip):
    vm = guest_with_irqchip.vm
    vm.irq_line(4, True)
    assert vm.get_irqchip(Chip.PIC_MASTER).chip.pic.irr & 1 << 4
    vm.irq_line(4, False)
    assert vm.get_irqchip(Chip.IOAPIC).chip.ioapic.base_address == 0xFEC00000


def test_the_pit(guest_with_irqchip):
    vm = guest_with_irqchip.vm
    vm.create_pit2()
    state = vm.get_pit2()
    state.channels[0].count = 0x1234
    vm.set_pit2(state)
    assert vm.get_pit2().channels[0].count == 0x1234
    vm.reinject_control(False)
    with pytest.raises(IoctlError, match="there is already a PIT"):
        vm.create_pit2()


def test_the_clock(guest):
    clock = guest.vm.get_clock()
    clock.clock += 10**12
    clock.flags = 0
    guest.vm.set_clock(clock)
    assert guest.vm.get_clock().clock >= clock.clock


def test_a_tsc_frequency(guest):
    assert guest.vcpu.get_tsc_khz() > 0


def test_memory_outlives_its_handle_but_not_its_end(kvm):
    guest = Guest(kvm)
    guest.put(CODE, b"x")
    guest.close()
    with pytest.raises(ValueError, match="released"):
        guest.memory.view[0]


def test_closed_memory_stays_as_long_as_a_guest_has_it(guest):
    """Else whatever is mapped there next would be the guest's to write."""
    address = guest.memory.address
    guest.load(b"\xa2\x00\x30\xf4", rax=0x5A)  # mov %al, 0x3000; hlt
    guest.memory.close()
    with pytest.raises(UsageError):
        _ = guest.memory.address
    assert f"{address:x}-" in Path("/proc/self/maps").read_text()
    assert isinstance(guest.vcpu.run(), Hlt)
    assert guest.vm.memory_at(0x3000, 1)[0] == 0x5A
    guest.vm.close()
    assert f"{address:x}-" in Path("/proc/self/maps").read_text()  # the vCPU lives
    guest.vcpu.close()
    assert f"{address:x}-" not in Path("/proc/self/maps").read_text()


def test_memory_is_a_context():
    with Memory(4096) as memory:
        memory.view[0] = 1
    with pytest.raises(ValueError, match="released"):
        memory.view[0] = 2


def test_code_that_user_space_writes_is_what_runs_next(guest):
    """A disk reads programs into pages where other programs were; nobody sets RIP for that."""
    routine, far = 0x3000, 0x3FFE  # the second one lies across a page
    # again: call 0x3000; out %al, $0xed; call 0x3ffe; out %al, $0xed; jmp again
    guest.load(b"\xe8\xfd\x1f\xe6\xed\xe8\xf6\x2f\xe6\xed\xeb\xf4")
    for value in (*range(1, 20), 1):
        for place in (routine, far):
            guest.put(place, bytes((0xB0, value, 0xC3)))  # mov $value, %al; ret
        if value % 5:
            guest.vm.memory_written(routine, far + 3 - routine)
        else:  # very often, with nothing executed in between
            for at in (*range(0, 0x6000, 2), far, far + 2):
                guest.vm.memory_written(at, 1)
        for _ in range(2):
            exit_ = guest.vcpu.run()
            assert (exit_.port, bytes(exit_.data)) == (0xED, bytes((value,)))
    guest.vm.memory_written(0x10_0000_0000, 1)  # no memory: nothing to do


def test_a_vcpu_that_executes_meanwhile_sees_the_new_code_too(guest):
    """Another vCPU's disk request brings in what this one is about to call."""
    # again: call 0x3000; mov %al, 0x4000; jmp again
    guest.load(b"\xe8\xfd\x1f\xa2\x00\x40\xeb\xf8")
    guest.put(0x3000, b"\xb0\x00\xc3")
    thread = threading.Thread(target=guest.vcpu.run)
    thread.start()
    try:
        for value in range(1, 50):
            guest.put(0x3000, bytes((0xB0, value, 0xC3)))  # mov $value, %al; ret
            guest.vm.memory_written(0x3000, 3)
            end = time.monotonic() + 20
            while guest.memory.view[0x4000] != value:
                assert time.monotonic() < end, f"still {guest.memory.view[0x4000]}, not {value}"
                time.sleep(0)
    finally:
        guest.vcpu.kick()
        thread.join()
