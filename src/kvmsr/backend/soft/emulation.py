# SPDX-License-Identifier: Apache-2.0
"""
Emulation
---------

What belongs to each instruction that KVM emulates: getting behind it, and raising exceptions.
"""

from typing import Final

from kvmsr.backend.soft.cpu.code import fetch, rip_mask
from kvmsr.backend.soft.cpu.delivery import deliver, interrupt
from kvmsr.backend.soft.cpu.engine import Engine
from kvmsr.backend.soft.debugging import BS, DB, SINGLESTEP, TF, Debugging
from kvmsr.backend.soft.events import Events
from kvmsr.backend.soft.profile import Profile

__all__ = ("Emulation",)

_RIP: Final = 16
_BP, _OF, _UD, _GP = 3, 4, 6, 13
_SOFT: Final = (_BP, _OF)
_QUEUED_BY_KVM: Final = {"pvm": frozenset(range(32)), "amd": frozenset((_UD, _GP))}
"""The exceptions that hardware, if there is any, does not deliver by itself (svm/svm.c)."""


class Emulation:
    """
    Ends instructions on *cpu*.

    All of it returns whether the guest goes on; False: it has shut down, or there is an exit.

    :ivar knows_next_rip: the guest came out at an instruction, so SVM has reported the next RIP.
    """

    def __init__(self, cpu: Engine, events: Events, debugging: Debugging, profile: Profile) -> None:
        self._cpu, self._events, self._debugging = cpu, events, debugging
        self._queued: frozenset[int] = _QUEUED_BY_KVM.get(profile.vendor, frozenset())
        self._checks_soft = profile.checks_soft_exceptions
        self.knows_next_rip = False

    def skip(self, length: int, *, steps: bool = True) -> bool:
        """Move RIP behind an emulated instruction, and do the single step if it *steps*."""
        cpu = self._cpu
        regs = cpu.regs
        regs[_RIP] = rip = regs[_RIP] + length & rip_mask(cpu)
        if rip >> 47 == 1:  # over the edge of the canonical addresses: fetching faults
            return self.raise_exception(_GP)
        if steps:
            return self.skipped()
        cpu.shadow = False
        return True

    def skipped(self) -> bool:
        """Do what is due when RIP is behind an instruction: end the shadow, do the single step."""
        cpu = self._cpu
        if cpu.shadow:
            cpu.shadow = False
        if self._debugging.control & SINGLESTEP:
            return self._debugging.exit_step()
        if cpu.state.eflags.value & TF:
            self.trap()
            cpu.open_window()
            return not cpu.running or self.raise_queued()
        return True

    def trap(self) -> None:
        """Queue the guest's own single step."""
        self._debugging.note(BS)
        self._events.queue(DB, None)

    def raise_exception(self, vector: int, error_code: int = 0) -> bool:
        """Deliver an exception now."""
        if vector in self._queued:
            self._events.remember(vector, error_code)
        return self._deliver(vector, error_code)

    def raise_queued(self) -> bool:
        """Deliver the exception that is queued, from inside the run."""
        vector, code = self._events.take_exception()
        if vector in _SOFT and self._checks_soft and not self.knows_next_rip:
            return self._raise_by_instruction(vector)
        return self._deliver(vector, code or 0, resume=not self._events.last.from_user)

    def _raise_by_instruction(self, vector: int) -> bool:
        """Deliver #BP or #OF behind the instruction at RIP if that raises it, or else drop it."""
        cpu = self._cpu
        instruction = fetch(cpu)
        length = instruction.length_if_raises(vector) if instruction is not None else 0
        if not length:
            return True
        cpu.regs[_RIP] = cpu.regs[_RIP] + length & rip_mask(cpu)
        return self._deliver(vector, 0)

    def _deliver(self, vector: int, error_code: int, *, resume: bool = True) -> bool:
        self._debugging.before_frame()
        if not deliver(self._cpu, vector, error_code, resume=resume):
            self._events.shut_down = True
            return False
        self._debugging.after_frame()
        return True

    def interrupt(self, vector: int) -> bool:
        """Deliver an interrupt or an NMI now."""
        self._debugging.before_frame()
        if not interrupt(self._cpu, vector):
            self._events.shut_down = True
            return False
        self._debugging.after_frame()
        return True
