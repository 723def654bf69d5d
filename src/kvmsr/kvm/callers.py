# SPDX-License-Identifier: Apache-2.0
"""
Callers
-------

The functions that called the one that a guest is in, by their return addresses. They are found as
the essay above ``native/c/where.c`` explains; the two are held to each other by a test.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from kvmsr.abi import cpu
from kvmsr.errors import IoctlError, UsageError
from kvmsr.kvm.vcpu import Vcpu
from kvmsr.kvm.vm import Vm

__all__ = ("MOST_CALLERS", "Found", "find_callers")

MOST_CALLERS: Final = 8

_PAGE: Final = 4096
_STACK: Final = 512
_CHAIN: Final = 16384
_NEAR: Final = 1 << 31
_FUNCTION: Final = 4096
_CALL: Final = 7
_LONG: Final = (1 << 64) - 1

Read = Callable[[int, int], bytes]
"""Returns up to that many bytes at a linear address: those before the first that is not there."""


class Found(NamedTuple):
    """
    What was found.

    :ivar callers: the return addresses, the nearest first.
    :ivar guesses: a bit for each of them: it only looks like one.
    """

    callers: tuple[int, ...] = ()
    guesses: int = 0


class _Candidate(NamedTuple):
    """
    An address behind a CALL.

    :ivar address: the address.
    :ivar target: what the CALL leads to; None if it is an indirect one.
    """

    address: int
    target: int | None

    def called(self, address: int) -> bool:
        """Return whether the CALL leads to the function that *address* is in."""
        return self.target is not None and 0 <= address - self.target < _FUNCTION


def find_callers(
    vcpu: Vcpu, vm: Vm, regs: cpu.Regs, sregs: cpu.Sregs, most: int = MOST_CALLERS
) -> Found:
    """Return up to *most* callers, at most 8, of what a vCPU executes."""
    word = 8 if sregs.cs.l else 4 if sregs.cs.db else 0  # 16-bit code has neither
    if not word or not most:
        return Found()
    return _Search(_reader(vcpu, vm), regs, sregs, word).find(min(most, MOST_CALLERS))


def _reader(vcpu: Vcpu, vm: Vm) -> Read:
    pages: dict[int, int | None] = {}

    def read(linear: int, size: int) -> bytes:
        found = b""
        while len(found) < size:
            page, offset = linear & -_PAGE, linear % _PAGE
            if page not in pages:
                try:
                    pages[page] = vcpu.translate(page)
                except IoctlError:
                    pages[page] = None
            base = pages[page]
            part = min(size - len(found), _PAGE - offset)
            try:
                if base is None:
                    return found
                found += vm.memory_at((base & -_PAGE) + offset, part)
            except (UsageError, ValueError):  # no memory, or it has just been closed
                return found
            linear += part
        return found

    return read


class _Search:
    def __init__(self, read: Read, regs: cpu.Regs, sregs: cpu.Sregs, word: int) -> None:
        self._read, self._word = read, word
        self._rip, self._rsp, self._rbp = regs.rip, regs.rsp, regs.rbp
        self._mask = _LONG if word == 8 else _LONG >> 32
        self._code, self._stack = (0, 0) if word == 8 else (sregs.cs.base, sregs.ss.base)
        self._known: dict[int, _Candidate | None] = {}

    def find(self, most: int) -> Found:
        chain, stack = self._follow(), self._words(self._rsp, _STACK)
        if chain:
            first = self._candidate(stack[0]) if stack else None
            if first is not None and first.called(self._rip) and first.address != chain[0]:
                chain.insert(0, first.address)  # the last function has no frame
            return Found(tuple(chain[:most]))
        callers: list[int] = []
        guesses, at, address = 0, 0, self._rip
        # A function that does nothing but access an MSR has nothing else on the stack.
        last = 1 if stack and self._candidate(stack[0]) else len(stack)
        while len(callers) < most:
            at, found = self._search(stack, at, last, address)
            if found is None:
                break
            guesses |= (not found.called(address)) << len(callers)
            address, last = found.address, len(stack)
            callers.append(address)
        return Found(tuple(callers), guesses)

    def _follow(self) -> list[int]:
        """
        Follow the chain of frames.

        RBP may hold anything, so a single frame counts only if it is the outermost.
        """
        callers: list[int] = []
        frame, least = self._rbp, self._rsp
        while (
            len(callers) < MOST_CALLERS
            and least <= frame < self._rsp + _CHAIN
            and frame % self._word == 0
        ):
            words = self._words(frame, 2 * self._word)
            if len(words) < 2 or self._candidate(words[1]) is None:
                break
            callers.append(words[1])
            least, frame = frame + 1, words[0]
        return callers if len(callers) > 1 or not frame else []

    def _search(
        self, stack: list[int], first: int, last: int, address: int
    ) -> tuple[int, _Candidate | None]:
        """Return the next place, and the return address into the caller of *address*'s function."""
        there = [
            (at + 1, found)
            for at in range(first, last)
            if (found := self._candidate(stack[at])) is not None
        ]
        callers = [one for one in there if one[1].called(address)]
        if callers:
            return max(callers, key=lambda one: one[1].target or 0)
        indirect = [one for one in there if one[1].target is None]
        return next(iter(indirect or there), (last, None))

    def _words(self, at: int, size: int) -> list[int]:
        data, word = self._read((self._stack + at) & self._mask, size), self._word
        return [
            int.from_bytes(data[place : place + word], "little")
            for place in range(0, len(data) - word + 1, word)
        ]

    def _candidate(self, address: int) -> _Candidate | None:
        if address not in self._known:
            self._known[address] = self._call_before(address)
        return self._known[address]

    def _call_before(self, address: int) -> _Candidate | None:
        if not address or not -_NEAR <= address - self._rip < _NEAR:
            return None
        end = (self._code + address) & self._mask
        size = end % _PAGE
        if not size or size > _CALL:
            size = _CALL
        code = self._read((end - size) & self._mask, size)
        if len(code) < size:
            return None
        if size < _CALL:
            before = self._read((end - _CALL) & self._mask, _CALL - size)
            code = (before if len(before) == _CALL - size else bytes(_CALL - size)) + code
        if code[2] == 0xE8:
            distance = int.from_bytes(code[3:], "little", signed=True)
            return _Candidate(address, (address + distance) & self._mask)
        if any(_indirect_call(code[_CALL - n :]) == n for n in range(2, _CALL + 1)):
            return _Candidate(address, None)
        return None


def _indirect_call(code: bytes) -> int:
    """Return the length of the indirect near CALL (ff /2) that *code* begins with, or 0."""
    if code[0] != 0xFF or code[1] >> 3 & 7 != 2:
        return 0
    mod, rm = code[1] >> 6, code[1] & 7
    if mod == 3:
        return 2
    sib = rm == 4
    base = (code[2] & 7 if len(code) > 2 else 0) if sib else rm
    return 2 + sib + (4 if mod == 2 or (mod == 0 and base == 5) else mod)
