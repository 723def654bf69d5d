"""Breakpoints on data, the guest's own and a debugger's; and MOV DR, where the debugger watches."""

import pytest

from kvmsr import backend
from kvmsr.abi import GuestDbg, cpu, ioctls
from kvmsr.kvm import Kvm, exits
from tests.harness import CODE, Guest

PLACE = 0x3000
DB_HANDLER = 0x2100
WRITES, ANY = 1, 3
RESET = 0xFFFF0FF0
DETECT = 1 << 13
MOVB, MOVW = b"\xc6\x06\x00\x30\x55", b"\xc7\x06\x00\x30\x55\x55"  # mov $…, 0x3000
LOAD, HLT, NOP = b"\xa0\x00\x30", b"\xf4", b"\x90"  # mov 0x3000, %al
INC_BX = b"\x43"


@pytest.fixture
def guest():
    made = Guest(Kvm(backend.open("soft", profile="linux-6.1-amd")))
    made.put(4, bytes((DB_HANDLER & 0xFF, DB_HANDLER >> 8, 0, 0)))
    made.put(DB_HANDLER, b"\x45\xcf")  # inc %bp; iret
    yield made
    made.close()


def dr7(number, kind, size=1):
    length = {1: 0, 2: 1, 4: 3}[size]
    return 0x400 | 2 << 2 * number | (kind | length << 2) << 16 + 4 * number


def watch(guest, number=0, address=PLACE, kind=WRITES, size=1):
    """Have the guest watch a place by itself."""
    debug = guest.vcpu.get_debugregs()
    debug.db[number], debug.dr7 = address, dr7(number, kind, size)
    guest.vcpu.set_debugregs(debug)


def debug(guest, flags, number=0, kind=WRITES, value=None):
    """Have a debugger watch it."""
    wants = cpu.GuestDebug(control=int(GuestDbg.ENABLE | flags))
    wants.arch.debugreg[number] = PLACE
    wants.arch.debugreg[7] = dr7(number, kind) if value is None else value
    guest.vcpu.raw_ioctl(ioctls.KVM_SET_GUEST_DEBUG, wants)


def traps(guest, code):
    """Run code; return how many #DB came, and DR6."""
    guest.load(code + HLT)
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    return guest.vcpu.get_regs().rbp, guest.vcpu.get_debugregs().dr6


@pytest.mark.parametrize(("kind", "seen"), [(WRITES, 1), (ANY, 2)])
def test_of_the_guest(guest, kind, seen):
    watch(guest, number=2, kind=kind)
    assert traps(guest, NOP + LOAD + MOVB + NOP) == (seen, RESET | 1 << 2)
    assert guest.memory.view[PLACE] == 0x55


@pytest.mark.parametrize(
    ("address", "size", "seen"), [(PLACE + 1, 1, 1), (PLACE + 2, 1, 0), (PLACE + 1, 2, 1)]
)
def test_any_byte_of_it_counts(guest, address, size, seen):
    watch(guest, address=address, size=size)
    assert traps(guest, MOVW)[0] == seen


def test_it_is_a_trap(guest):
    watch(guest)
    guest.put(DB_HANDLER, b"\xe6\xdb" + HLT)  # out %al, $0xdb
    guest.load(MOVB + INC_BX + HLT)
    assert isinstance(guest.vcpu.run(), exits.IoOut)
    regs = guest.vcpu.get_regs()
    assert int.from_bytes(guest.memory.view[regs.rsp : regs.rsp + 2], "little") == CODE + len(MOVB)
    assert regs.rbx == 0


def test_a_guest_that_sets_it_itself(guest):
    """MOV to DR7 counts from the next instruction on, and ends it again."""
    set_dr0, set_dr7 = b"\x0f\x23\xc0", b"\x0f\x23\xfb"  # mov %eax, %dr0; mov %ebx, %dr7
    clear = b"\x66\x31\xdb"  # xor %ebx, %ebx
    code = set_dr0 + set_dr7 + MOVB + clear + set_dr7 + MOVB + HLT
    guest.load(code, rax=PLACE, rbx=dr7(0, WRITES))
    assert isinstance(guest.vcpu.run(), exits.Hlt)
    assert guest.vcpu.get_regs().rbp == 1


@pytest.mark.parametrize("number", range(4))
def test_of_a_debugger(guest, number):
    debug(guest, GuestDbg.USE_HW_BP, number)
    guest.load(NOP + LOAD + MOVB + HLT)
    seen = guest.vcpu.run()
    assert (seen.exception, seen.pc, seen.dr6) == (1, CODE + 9, RESET | 1 << number)
    assert guest.vcpu.get_debugregs().dr6 == RESET  # the guest learns nothing
    guest.vcpu.set_guest_debug(GuestDbg(0))
    assert isinstance(guest.vcpu.run(), exits.Hlt)


def test_a_debugger_that_steps_learns_both(guest):
    debug(guest, GuestDbg.USE_HW_BP | GuestDbg.SINGLESTEP)
    guest.load(NOP + MOVB + HLT)
    assert guest.vcpu.run().dr6 == RESET | 1 << 14
    assert guest.vcpu.run().dr6 == RESET | 1 << 14 | 1


def test_a_debugger_hears_of_moves_of_debug_registers(guest):
    debug(guest, GuestDbg.USE_HW_BP, value=0x400 | DETECT)
    guest.load(NOP + b"\x0f\x21\xc0" + HLT)  # mov %dr0, %eax
    seen = guest.vcpu.run()
    assert (seen.exception, seen.pc, seen.dr6) == (1, CODE + 1, RESET | DETECT)
