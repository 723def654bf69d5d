# SPDX-License-Identifier: Apache-2.0
"""
Where the guest was
-------------------

Collected once a run is over, for those that the guest did not end itself: where each vCPU was, its
last accesses, and the last line of the guest's output.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from kvmsr.errors import KvmsrError, SymbolError
from kvmsr.kvm import Vcpu
from kvmsr.machine.diagnose import where
from kvmsr.machine.vcpu import VcpuThread
from kvmsr.session import End, EndKind, Position
from kvmsr.symbols import Symbols

__all__ = ("LastLine", "ended_by_the_guest", "positions")

_KEPT: Final = 4096  # bytes of output
_LONGEST: Final = 200  # characters of a line
_LSTAR: Final = 0xC000_0082
_KERNEL: Final = 1 << 63
_OF_ITS_OWN: Final = (EndKind.RESET, EndKind.POWEROFF, EndKind.SHUTDOWN)


class LastLine:
    """
    Passes a guest's output on, and keeps its last line.

    :param output: called with the bytes.
    """

    def __init__(self, output: Callable[[bytes], None]) -> None:
        self._output = output
        self._kept = bytearray()

    def write(self, data: bytes) -> None:
        """Pass *data* on."""
        kept = self._kept
        kept += data
        if len(kept) > 2 * _KEPT:
            del kept[:-_KEPT]
        self._output(data)

    @property
    def text(self) -> str:
        """The last line that is not empty, or its end if it is long."""
        lines = bytes(self._kept).decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")[-_LONGEST:]


def ended_by_the_guest(end: End) -> bool:
    """Return whether the guest left on its own: nobody asks where it was."""
    return end.kind is EndKind.DEBUG_EXIT or (end.kind in _OF_ITS_OWN and not end.code)


def positions(
    threads: Sequence[VcpuThread],
    name_device: Callable[[bool, int], str],
    symbols: Symbols | Path | None,
) -> tuple[Position, ...]:
    """
    Return where the vCPUs are whose threads have ended, and of the others what they did last.

    :param name_device: returns which device is in memory (True) or at a port, by the address.
    :param symbols: the guest's functions, or what may be its kernel.
    """
    found = []
    for thread in threads:
        if thread.is_alive():
            place = Position(vcpu=thread.vcpu.id, problem="it has not come back from its last exit")
        else:
            place = thread.stopped_at or _place(thread.vcpu)
        port, memory = thread.last_accesses(name_device)
        found.append(replace(place, port=port, memory=memory))
    return _named(found, symbols, [thread.vcpu for thread in threads if not thread.is_alive()])


def _place(vcpu: Vcpu) -> Position:
    try:
        return where(vcpu)
    except KvmsrError as error:
        return Position(vcpu=vcpu.id, problem=str(error))


def _named(
    found: Sequence[Position], symbols: Symbols | Path | None, vcpus: Sequence[Vcpu]
) -> tuple[Position, ...]:
    """Name the functions of a kernel; reading them takes a second, so only where there is one."""
    if symbols is None or not any(place.mode == "long" and place.rip & _KERNEL for place in found):
        return tuple(found)
    placed = isinstance(symbols, Path)  # a kernel that is loaded directly is where it was linked
    if isinstance(symbols, Path):
        try:
            symbols = Symbols.read(symbols)
        except SymbolError:
            return tuple(found)
    for vcpu in vcpus:
        with suppress(KvmsrError):
            if symbols.place_by_syscall(vcpu.get_msrs([_LSTAR])[_LSTAR]):
                placed = True
                break
    if not placed:
        return tuple(found)
    return tuple(
        replace(place, symbol=symbols.name(place.rip)) if place.rip & _KERNEL else place
        for place in found
    )
