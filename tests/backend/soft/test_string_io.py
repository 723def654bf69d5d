"""How many elements a REP INS takes at once, and by which registers, on soft and on the host."""

import pytest

from kvmsr.kvm.exits import Hlt, IoIn

INSB, INSW, HLT = b"\xf3\x6c", b"\xf3\x6d", b"\xf4"
DF = 1 << 10
PORT = 0x80


@pytest.mark.parametrize(
    ("code", "rdi", "flags", "count", "rdi_after"),
    [
        (INSB, 0x3000, 2, 1024, 0x3400),
        (INSW, 0x3000, 2, 512, 0x3400),
        (INSB, 0x3FF0, 2, 16, 0x4000),  # to the end of the page
        (INSW, 0x3FF0, 2, 16, 0x4010),  # in elements, though it is meant in bytes
        (INSB, 0x3010, 2 | DF, 16, 0x3000),
        (INSB, 0x3000, 2 | DF, 1, 0x2FFF),
    ],
)
def test_ahead(guest, code, rdi, flags, count, rdi_after):
    guest.load(code + HLT, rcx=3000, rdi=rdi, rdx=PORT, rflags=flags)
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, IoIn)
    assert len(exit_.data) == count * (1 if code == INSB else 2)
    guest.vcpu.complete_pending()
    regs = guest.vcpu.get_regs()
    assert (regs.rcx, regs.rdi) == (3000 - count, rdi_after)


@pytest.mark.parametrize(("rcx", "taken"), [(1, 1), (8, 8)])
def test_by_the_registers_that_user_space_has_set_meanwhile(guest, rcx, taken):
    guest.load(INSB + HLT, rcx=2, rdi=0x3000, rdx=PORT)
    assert isinstance(guest.vcpu.run(), IoIn)
    regs = guest.vcpu.get_regs()
    regs.rcx = rcx
    guest.vcpu.set_regs(regs)
    assert isinstance(guest.vcpu.run(), Hlt)
    regs = guest.vcpu.get_regs()
    assert (regs.rcx, regs.rdi) == (0, 0x3000 + taken)


def test_all_of_it_arrives(guest):
    guest.load(INSB + HLT, rcx=3000, rdi=0x3010, rdx=PORT)
    exits = 0
    while isinstance(exit_ := guest.vcpu.run(), IoIn):
        exit_.data[:] = b"\xaa" * len(exit_.data)
        exits += 1
    assert exits == 3
    assert bytes(guest.memory.view[0x3010 : 0x3010 + 3000]) == b"\xaa" * 3000
