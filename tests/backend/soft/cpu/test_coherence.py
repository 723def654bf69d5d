# SPDX-License-Identifier: Apache-2.0
"""Code that is rewritten, and how few accesses are slow for its sake."""

import ctypes
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from kvmsr.backend.soft.cpu import coherence
from kvmsr.backend.soft.cpu.access import MemoryAccess
from kvmsr.backend.soft.cpu.vmcb import Exit, SegmentState, StartState
from tests.backend.soft.cpu.test_engine import CODE, SIZE, STACK, Box

TABLES, TARGET, ALIAS = 0x10000, 0x4000, 1 << 30
ROUNDS = 200
PRESENT, WRITE, LARGE, NX = 1, 2, 1 << 7, 1 << 63
LONG_CODE, LONG_DATA = SegmentState(8, 0, 0xFFFFFFFF, 0xA9B), SegmentState(16, 0, 0xFFFFFFFF, 0xC93)


class LongBox(Box):
    """The same in long mode: memory is at its address, and again at ALIAS, which has no code."""

    def __init__(self) -> None:
        super().__init__()
        directory = TABLES + 0x2000
        entries = {
            TABLES: TABLES + 0x1000 | PRESENT | WRITE,
            TABLES + 0x1000: directory | PRESENT | WRITE,
            TABLES + 0x1008: directory | PRESENT | WRITE | NX,
            directory: PRESENT | WRITE | LARGE,
        }
        for at, entry in entries.items():
            struct.pack_into("<Q", self.memory, at, entry)
        parts = [(0, SIZE, ctypes.addressof(self._pin))]
        self.engine.coherence.learn_memory(parts)

    def start(self, code: bytes, at: int = CODE, **registers: int) -> None:
        self.memory[at : at + len(code)] = code
        data = LONG_DATA
        self.engine.load(
            StartState(
                cs=LONG_CODE, ss=data, ds=data, es=data, cr0=0x80000011, cr3=TABLES, cr4=0x20,
                efer=0xD00, rip=at, rsp=STACK,
            )
        )  # fmt: skip
        for name, value in registers.items():
            self.engine.regs[("rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi").index(name) + 1] = (
                value
            )


@pytest.fixture
def box() -> Iterator[LongBox]:
    box = LongBox()
    if coherence._core is None:
        pytest.skip("needs a C compiler: tlb.c was not built")
    yield box
    box.engine.close()


def slow_accesses(box: Box) -> list[int]:
    """Return a list of the addresses of accesses that take the slow way, from now on."""
    slot = ctypes.c_uint64.from_address(
        (box.engine._handle.value or 0) + coherence._FIND_MEMORY_IN_ENGINE
    )
    kind = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64)
    found, former = [], kind(slot.value)

    def count(engine: int, address: int) -> Any:
        found.append(address)
        return former(engine, address)

    box.counting = kind(count)  # type: ignore[attr-defined]
    slot.value = ctypes.cast(box.counting, ctypes.c_void_p).value  # type: ignore[attr-defined]
    return found


# Writes MOV AL, CL / RET's constant by way of rdi and then of rsi, calls it by rbx, and compares.
REWRITE = bytes.fromhex(
    "c60700 c64701c3"  # again: movb $0, (rdi); movb $0xc3, 1(rdi): data so far
    "c607b0 884f01 c64702c3"  # mov $cl, %al; ret
    "ffd3 38c8 7514"  # call *%rbx; cmp %cl, %al; jne bad
    "80f155 884e01"  # xor $0x55, %cl; mov %cl, 1(%rsi)
    "ffd3 38c8 7509"  # call *%rbx; cmp %cl, %al; jne bad
    "80f155 ffc9 75da"  # xor $0x55, %cl; dec %ecx; jnz again
    "ffc2 90"  # inc %edx
    "f4"  # bad: hlt
)


@pytest.mark.parametrize("first", [0, ALIAS])
@pytest.mark.parametrize("second", [0, ALIAS])
@pytest.mark.parametrize("other_code", [False, True])
def test_code_that_is_rewritten_by_any_address(
    box: LongBox, first: int, second: int, other_code: bool
) -> None:
    if other_code:  # the page has code that stays
        box.memory[TARGET + 0x800 : TARGET + 0x801] = b"\xf4"
        box.start(b"\xff\xe3", CODE + 0x800, rbx=TARGET + 0x800)  # jmp *%rbx
        box.run()
        box.client.exits.clear()
    box.start(REWRITE, rcx=ROUNDS, rbx=TARGET, rdi=TARGET + first, rsi=TARGET + second)
    box.run()
    assert box.client.exits == [(Exit.HLT, 0)]
    assert (box.engine.regs[1], box.engine.regs[2]) == (0, 1)


# mov %ecx, (%rdi); add (%rdi), %eax; dec %ecx; jnz
ACCESSES = bytes.fromhex("890f 0307 ffc9 75f8 f4")
COUNT = 10_000


@pytest.mark.parametrize("address", [TARGET, TARGET + ALIAS], ids=["executable", "not"])
def test_accesses_where_there_is_no_code_are_fast(box: LongBox, address: int) -> None:
    slow = slow_accesses(box)
    box.start(ACCESSES, rcx=COUNT, rdi=address)
    box.run()
    assert box.engine.regs[0] & 0xFFFFFFFF == COUNT * (COUNT + 1) // 2
    assert len([at for at in slow if at >> 12 == TARGET >> 12]) < 10


def test_accesses_where_code_was_are_fast_again(box: LongBox) -> None:
    box.memory[TARGET : TARGET + 1] = b"\xf4"
    box.start(b"\xff\xe3", CODE + 0x800, rbx=TARGET)  # jmp *%rbx
    box.run()
    box.start(ACCESSES, rcx=1, rdi=TARGET)
    box.run()
    slow = slow_accesses(box)
    box.start(ACCESSES, rcx=COUNT, rdi=TARGET)  # with an empty TLB
    box.run()
    assert len([at for at in slow if at >> 12 == TARGET >> 12]) < 10


def test_stores_to_a_page_with_code_are_seen(box: LongBox) -> None:
    slow = slow_accesses(box)
    box.start(ACCESSES, rcx=COUNT, rdi=CODE + 0x800)
    box.run()
    assert len([at for at in slow if at == CODE + 0x800]) >= COUNT


def test_accesses_after_one_to_no_memory_are_fast(box: LongBox) -> None:
    # mov SIZE + 0x10, %eax; and the loop
    code = b"\x8b\x04\x25" + struct.pack("<I", SIZE + 0x10) + ACCESSES
    box.start(code, rcx=COUNT, rdi=TARGET)
    box.run()
    assert isinstance(box.engine.access, MemoryAccess)
    box.engine.step_over({SIZE + 0x10: b"\1\0\0\0"})
    assert (box.engine.regs[0], box.engine.access) == (1, None)
    slow = slow_accesses(box)
    box.run()
    assert box.engine.regs[0] & 0xFFFFFFFF == COUNT * (COUNT + 1) // 2 + 1
    assert len([at for at in slow if at >> 12 == TARGET >> 12]) < 10


def test_memory_at_two_addresses_is_left_to_the_engine(box: LongBox) -> None:
    place = ctypes.addressof(box._pin)
    box.engine.coherence.forget_memory()
    box.engine.map(SIZE, SIZE, place, writable=True)
    box.engine.coherence.learn_memory([(0, SIZE, place), (SIZE, SIZE, place)])
    box.start(REWRITE, rcx=ROUNDS, rbx=TARGET, rdi=TARGET + SIZE, rsi=TARGET)
    box.run()
    assert (box.engine.regs[1], box.engine.regs[2]) == (0, 1)
    # And what was translated meanwhile does not outlive it.
    box.engine.coherence.forget_memory()
    box.engine.unmap(SIZE, SIZE)
    box.engine.coherence.learn_memory([(0, SIZE, place)])
    box.start(REWRITE, rcx=ROUNDS, rdx=0, rbx=TARGET, rdi=TARGET + ALIAS, rsi=TARGET)
    box.run()
    assert (box.engine.regs[1], box.engine.regs[2]) == (0, 1)
