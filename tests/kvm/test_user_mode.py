"""CPL 3 with the kernel's tables on pages that user space may not touch, as in any real kernel."""

import struct

import pytest

from kvmsr.kvm.exits import IoIn, IoOut
from tests.conformance import guest as tables
from tests.harness import MSR, Guest

PAGE_TABLE = 0xC000
USER_PAGES = (1, 9)  # code, stack
TSS, BITMAP = 0x5800, 0x68


@pytest.fixture
def user(kvm):
    """Return a vCPU at CPL 3."""
    made = Guest(kvm)
    tables.prepare_memory(made.memory)
    entries = [page << 12 | 3 | (4 if page in USER_PAGES else 0) for page in range(512)]
    made.put(PAGE_TABLE, struct.pack("<512Q", *entries))
    made.put(0x4000, struct.pack("<Q", PAGE_TABLE | 7))
    tables.enter_long_mode(made.vcpu, user=True)
    yield made
    made.close()


def run(user, code, **registers):
    user.put(tables.CODE, code)
    user.vcpu.set_regs(tables.start_registers("user", tables.CODE, {"rflags": 2} | registers))
    return user.vcpu.run()


@pytest.mark.parametrize(
    ("code", "vector"),
    [
        (b"\x0f\x0b", 6),  # ud2
        (b"\x0f\x32", 13),  # rdmsr
        (b"\xf4", 13),  # hlt
        (b"\x8b\x04\x25\0\x70\0\0", 14),  # mov 0x7000, %eax: a page of the kernel's
    ],
)
def test_an_exception_reaches_the_kernel(user, code, vector):
    exit_ = run(user, code, rcx=MSR)
    assert isinstance(exit_, IoOut)
    assert exit_.port == 0xEE
    regs = user.vcpu.get_regs()
    assert tables.vector_of(regs.rip) == vector
    error_code, rip, _ = tables.frame("user", user.memory, vector, regs.rsp)
    assert rip == tables.CODE
    assert error_code == (5 if vector == 14 else 0)
    assert user.vcpu.get_sregs().cs.dpl == 0


def test_the_permission_map_is_the_kernels(user):
    sregs = user.vcpu.get_sregs()
    sregs.tr.limit = 0x2069
    user.vcpu.set_sregs(sregs)
    user.put(TSS + 102, struct.pack("<H", BITMAP))
    user.put(TSS + BITMAP, b"\xff" * 12 + b"\xfe\xff")  # port 0x60 alone is open
    assert isinstance(run(user, b"\xe4\x60"), IoIn)
    user.vcpu.complete_pending()
    exit_ = run(user, b"\xe4\x61")
    assert exit_.port == 0xEE
    assert tables.vector_of(user.vcpu.get_regs().rip) == 13
