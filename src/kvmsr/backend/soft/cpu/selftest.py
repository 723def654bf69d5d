# SPDX-License-Identifier: Apache-2.0
"""
The CPU's self-test
-------------------

The engine is used through insides of its library. Before the first guest runs, a small one shows
that they are what they are taken for.
"""

import ctypes
import mmap
import struct
from typing import Any, Final

from kvmsr.backend.soft.cpu.access import PortAccess
from kvmsr.backend.soft.cpu.delivery import deliver
from kvmsr.backend.soft.cpu.engine import Engine
from kvmsr.backend.soft.cpu.library import VERSION
from kvmsr.backend.soft.cpu.state import MSR_OFFSETS
from kvmsr.backend.soft.cpu.vmcb import Exit, StartState
from kvmsr.errors import BackendError

__all__ = ("check",)

_CODE, _HANDLER, _STACK, _SIZE = 0x1000, 0x1100, 0x2000, 0x10000
_GP: Final = 13
_PROGRAM: Final = bytes.fromhex("66b9664f4f470f32f4")  # mov ecx, 0x474f4f66; rdmsr; hlt
_HANDLER_PROGRAM: Final = bytes.fromhex("b05ae6e9f4")  # mov al, 0x5a; out 0xe9, al; hlt
_ADDRESSES: Final = frozenset({0xC0000082, 0xC0000083, 0xC0000102, 0x175, 0x176})
_checked = False


class _Client:
    """A vCPU that answers an RDMSR with #GP and stops at HLT."""

    engine: Engine

    def __init__(self) -> None:
        self.exits: list[int] = []

    def exit(self, code: int, _info: int) -> bool:
        self.exits.append(code)
        return code == Exit.MSR and deliver(self.engine, _GP)

    def port_in(self, _port: int, _size: int) -> int | None:
        return None

    def port_out(self, _port: int, _size: int, _value: int) -> bool:
        return False

    def syscall(self) -> None:
        """Not used."""

    def invalid(self) -> bool:
        return False


def check() -> None:
    """
    Test the engine, once a process.

    :raises BackendError: if it does not do what is expected of it; names what.
    """
    global _checked
    if _checked:
        return
    try:
        _run()
    except LookupError as error:
        raise _failed(str(error)) from None
    _checked = True


def _failed(what: str) -> BackendError:
    return BackendError(
        f"the soft backend's CPU does not pass its self-test: {what}; it is made for the x86-64"
        f" wheel of unicorn {VERSION}"
    )


def _run() -> None:
    client = _Client()
    engine = client.engine = Engine()
    engine.client = client
    _check_registers(engine)
    memory = mmap.mmap(-1, _SIZE)
    pin: Any = ctypes.c_char.from_buffer(memory)
    memory[_CODE : _CODE + len(_PROGRAM)] = _PROGRAM
    memory[_HANDLER : _HANDLER + len(_HANDLER_PROGRAM)] = _HANDLER_PROGRAM
    memory[4 * _GP : 4 * _GP + 4] = struct.pack("<HH", _HANDLER, 0)
    engine.map(0, _SIZE, ctypes.addressof(pin), writable=True)
    engine.watch_gaps([(_SIZE, (1 << 64) - 1)])
    engine.load(StartState(rip=_CODE, rsp=_STACK))
    engine.run()
    access = engine.access
    if client.exits != [Exit.MSR]:
        raise _failed(f"an RDMSR came out as {[hex(code) for code in client.exits]}")
    if not isinstance(access, PortAccess) or (access.port, access.value) != (0xE9, 0x5A):
        raise _failed("a port access did not come out")
    if engine.regs[16] != _HANDLER + 2 or access.length != 2:
        raise _failed("a port access did not stop the CPU at its instruction")
    engine.regs[16] += access.length
    engine.run()
    if client.exits != [Exit.MSR, Exit.HLT]:
        raise _failed("HLT did not come out")
    frame = struct.unpack("<HHH", memory[_STACK - 6 : _STACK])
    if frame[0] != _CODE + 6:
        raise _failed(f"a fault returns to {frame[0]:#x} instead of {_CODE + 6:#x}")
    engine.close()
    del pin


def _check_registers(engine: Engine) -> None:
    """Compare the places of registers with what the library's own calls put there."""
    for number, index in enumerate(MSR_OFFSETS):
        if index == 0xC0000080:
            continue
        value = 0x0000_7654_3210_0000 | number if index in _ADDRESSES else 0x7000 | number
        engine.write_register_msr(index, value)
        if engine.read_msr(index) != value:
            raise _failed(f"MSR {index:#x} is not where it should be")
        engine.write_msr(index, 0)
