# SPDX-License-Identifier: Apache-2.0
"""The CPU by itself: what comes out of it, and that nothing happens twice."""

import ctypes
import mmap
import struct
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvmsr.backend.soft.cpu.access import MemoryAccess, PortAccess
from kvmsr.backend.soft.cpu.delivery import deliver
from kvmsr.backend.soft.cpu.engine import Engine
from kvmsr.backend.soft.cpu.vmcb import Exit, SegmentState, StartState

CODE, STACK, SIZE = 0x1000, 0x8000, 1 << 20
HLT = b"\xf4"


class Client:
    """Stops at everything that a test does not handle."""

    def __init__(self) -> None:
        self.exits: list[tuple[int, int]] = []
        self.handle: Callable[[int, int], bool] = lambda code, info: False
        self.ports: dict[int, int] = {}
        self.written: list[tuple[int, int, int]] = []

    def exit(self, code: int, info: int) -> bool:
        self.exits.append((code, info))
        return self.handle(code, info)

    def port_in(self, port: int, size: int) -> int | None:
        return self.ports.get(port)

    def port_out(self, port: int, size: int, value: int) -> bool:
        self.written.append((port, size, value))
        return port in self.ports

    def syscall(self) -> None: ...

    def invalid(self) -> bool:
        return False


class Box:
    """An engine with a mebibyte of memory, in real mode."""

    def __init__(self) -> None:
        self.client = Client()
        self.engine = Engine()
        self.engine.client = self.client
        self.memory = mmap.mmap(-1, SIZE)
        self._pin: Any = ctypes.c_char.from_buffer(self.memory)
        self.engine.map(0, SIZE, ctypes.addressof(self._pin), writable=True)
        self.engine.watch_gaps([(SIZE, (1 << 64) - 1)])

    def start(self, code: bytes, **state: Any) -> None:
        self.memory[CODE : CODE + len(code)] = code
        self.engine.load(StartState(rip=CODE, rsp=STACK, **state))

    def run(self) -> int:
        """Run, and return RIP."""
        self.engine.run()
        return int(self.engine.regs[16])


@pytest.fixture
def box() -> Iterator[Box]:
    box = Box()
    yield box
    box.engine.close()


def test_loading_executes_nothing(box: Box) -> None:
    box.start(b"\x40" * 8)  # inc ax
    assert box.engine.regs[16] == CODE
    assert box.engine.regs[0] == 0
    assert box.engine.rflags == 2


@pytest.mark.parametrize("index", [0x35, 0x1B0, 0xC0000080, 0xC0010015, 0x474F4F00, 0xFFFFFFFF])
@pytest.mark.parametrize("write", [False, True])
def test_every_msr_access_comes_out(box: Box, index: int, write: bool) -> None:
    code = b"\x66\xb9" + struct.pack("<I", index) + (b"\x0f\x30" if write else b"\x0f\x32")
    box.start(code)
    assert box.run() == CODE + 6
    assert box.client.exits == [(Exit.MSR, int(write))]
    assert box.engine.regs[1] == index


def test_a_port_read_stops_before_its_instruction(box: Box) -> None:
    box.start(b"\xb0\x77\xe4\x42\x40" + HLT)  # mov al, 0x77; in al, 0x42; inc ax
    assert box.run() == CODE + 2
    access = box.engine.access
    assert isinstance(access, PortAccess)
    assert (access.write, access.port, access.size, access.length) == (False, 0x42, 1, 2)
    assert box.engine.regs[0] & 0xFF == 0x77


def test_a_port_write_stops_before_its_instruction_and_nothing_runs_behind_it(box: Box) -> None:
    box.start(bytes.fromhex("bb0000 66b812345678 ba3412 66ef 43 43") + HLT)
    box.run()
    access = box.engine.access
    assert isinstance(access, PortAccess)
    assert (access.port, access.size, access.value) == (0x1234, 4, 0x78563412)
    assert box.engine.regs[3] == 0


def test_ports_that_are_answered_do_not_stop(box: Box) -> None:
    box.client.ports[0x60] = 0xA5
    box.start(b"\xe4\x60\xe6\x60" + HLT)
    box.run()
    assert box.client.exits == [(Exit.HLT, 0)]
    assert box.client.written == [(0x60, 1, 0xA5)]


NO_MEMORY = SegmentState(0, SIZE, 0xFFFF, 0x93)


def test_a_read_of_no_memory_stops_before_its_instruction(box: Box) -> None:
    box.start(bytes.fromhex("43 a10002") + HLT, ds=NO_MEMORY)
    assert box.run() == CODE + 1
    access = box.engine.access
    assert isinstance(access, MemoryAccess)
    assert (access.write, access.address, access.size) == (False, SIZE + 0x200, 2)


def test_writes_to_no_memory_come_out_in_order_before_anything_else(box: Box) -> None:
    # mov ax, 0xbeef; mov [0x200], ax; mov [0x204], al; rdmsr
    box.start(bytes.fromhex("b8efbe a30002 a20402 0f32") + HLT, ds=NO_MEMORY)
    box.run()
    writes = [(each.address - SIZE, each.size, each.value) for each in box.engine.writes]
    assert writes == [(0x200, 2, 0xBEEF), (0x204, 1, 0xEF)]
    assert box.client.exits == []
    assert box.run() == CODE + 9
    assert box.client.exits == [(Exit.MSR, 0)]


def test_an_instruction_is_executed_again_with_what_it_reads(box: Box) -> None:
    box.start(bytes.fromhex("8306000205") + HLT, ds=NO_MEMORY)
    box.run()  # add word [0x200], 5: reads, then writes
    box.engine.step_over({SIZE + 0x200: b"\x10\x00"})
    assert box.engine.access is None
    (write,) = box.engine.writes
    assert (write.address, write.size, write.value) == (SIZE + 0x200, 2, 0x15)
    assert box.engine.regs[16] == CODE + 5


def test_an_instruction_that_reads_more_than_is_known_is_undone(box: Box) -> None:
    box.start(bytes.fromhex("f30f6f060002") + HLT, ds=NO_MEMORY, cr4=0x600)  # movdqu xmm0, [0x200]
    box.run()
    box.engine.step_over({SIZE + 0x200: b"12345678"})
    access = box.engine.access
    assert isinstance(access, MemoryAccess)
    assert (access.address, access.size) == (SIZE + 0x208, 8)
    assert box.engine.regs[16] == CODE
    box.engine.step_over({SIZE + 0x200: b"12345678", SIZE + 0x208: b"abcdefgh"})
    assert box.engine.access is None
    xmm0 = box.engine.read_register(box.engine.register("XMM0"), 16)
    assert xmm0.to_bytes(16, "little") == b"12345678abcdefgh"


def test_the_guest_does_not_reach_the_control_block(box: Box) -> None:
    # Long mode; the page at 2 MiB is mapped to where the engine's own pages lie.
    entries = {0x2000: 0x3003, 0x3000: 0x4003, 0x4000: 0x83, 0x4008: 1 << 45 | 0x83}
    for table, entry in entries.items():
        struct.pack_into("<Q", box.memory, table, entry)
    code = bytes.fromhex("488b042500102000 f4")  # mov rax, [0x201000]; hlt
    long_code = SegmentState(8, 0, 0xFFFFFFFF, 0xA9B)
    box.start(code, cs=long_code, cr0=0x80000011, cr3=0x2000, cr4=0x20, efer=0x500)
    box.run()
    assert box.client.exits == [(Exit.EXCEPTION + 14, 9)]  # more bits than physical addresses have


def test_interrupting_from_another_thread_executes_nothing_twice(box: Box) -> None:
    # inc dword [0x500]; inc ecx; jmp back: memory and register count the same.
    box.start(bytes.fromhex("66ff060005 6641 ebf7"))
    stop = threading.Event()
    came_out = 0

    def handle(code: int, _info: int) -> bool:
        nonlocal came_out
        came_out += 1
        box.engine.close_window()
        return not stop.is_set()

    box.client.handle = handle

    def interrupt() -> None:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            box.engine.interrupt()
            time.sleep(0.0005)
        stop.set()
        while box.engine.running:
            box.engine.interrupt()
            time.sleep(0.001)

    thread = threading.Thread(target=interrupt)
    thread.start()
    box.run()
    thread.join()
    counted = struct.unpack_from("<I", box.memory, 0x500)[0]
    assert came_out > 50
    assert counted - (box.engine.regs[1] & 0xFFFFFFFF) in (0, 1)
    assert {code for code, _ in box.client.exits} <= {Exit.SMI, Exit.INTR}


def test_a_window_opens_when_the_guest_takes_interrupts(box: Box) -> None:
    box.start(b"\x90\x90\xfb\x90\x90" + HLT)  # nop; nop; sti; nop
    box.client.handle = lambda code, info: bool(box.engine.close_window())
    box.engine.open_window()
    assert box.run() == CODE + 4  # STI's shadow covers the instruction behind it
    assert box.client.exits[-1][0] == Exit.INTR


def test_a_fault_returns_to_its_instruction(box: Box) -> None:
    box.memory[13 * 4 : 13 * 4 + 4] = struct.pack("<HH", 0x1100, 0)
    box.memory[0x1100:0x1101] = HLT
    box.client.handle = lambda code, info: code == Exit.MSR and deliver(box.engine, 13)
    box.start(b"\x0f\x32")
    assert box.run() == 0x1100
    assert struct.unpack_from("<H", box.memory, STACK - 6)[0] == CODE


def test_self_modifying_code_is_seen(box: Box) -> None:
    # mov byte [0x1006], 0x43: the INC AX behind it becomes INC BX.
    box.start(bytes.fromhex("c606061043 90 40") + HLT)
    box.run()
    assert (box.engine.regs[0], box.engine.regs[3]) == (0, 1)


def test_flags_survive_a_round_trip(box: Box) -> None:
    box.start(HLT)
    for flags in (2, 0x8D7, 0x602, 0x40203, 0xCD7):
        box.engine.rflags = flags
        assert box.engine.rflags == flags


def test_an_error_in_the_client_ends_the_run_and_is_raised(box: Box) -> None:
    def broken(_code: int, _info: int) -> bool:
        raise ZeroDivisionError("mine")

    box.client.handle = broken
    box.start(HLT)
    with pytest.raises(ZeroDivisionError, match="mine"):
        box.engine.run()
    box.client.handle = lambda code, info: False
    box.start(HLT)
    box.engine.run()  # and it is usable as before


def test_after_an_exit_that_stops_no_interrupt_comes_out(box: Box) -> None:
    def skip(_code: int, _info: int) -> bool:
        box.engine.regs[16] += 1
        box.engine.shadow = False
        return False

    box.client.handle = skip
    box.start(b"\xfb" + HLT + b"\x43" + HLT)  # sti; hlt; inc bx; hlt
    box.engine.open_window()
    assert box.run() == CODE + 2
    assert box.client.exits == [(Exit.HLT, 0)]
    box.run()
    assert box.client.exits[1:] == [(Exit.INTR, 0)]
