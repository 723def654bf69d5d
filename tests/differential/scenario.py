# SPDX-License-Identifier: Apache-2.0
"""
Scenarios
---------

What a virtual machine is set up with, what its guest executes, and what user space does at each of
its exits: a value that can be written down, sent elsewhere, and made smaller.

Instructions and moves are tuples of a name and arguments. What they mean is in ``guest`` and
``moves``.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

__all__ = ("MODES", "Call", "Scenario")

MODES: Final = ("real", "protected", "long", "user")
"""Real mode, 32-bit and 64-bit code at CPL 0 with flat segments, 64-bit code at CPL 3."""

Call = tuple[Any, ...]
"""An instruction or a move: its name and arguments."""


@dataclass(frozen=True)
class Scenario:
    """
    A scenario.

    :ivar irqchip: the interrupt controllers are in the kernel.
    :ivar cpuid: the names of the features that CPUID shows the guest; None: CPUID is never set.
    :ivar vendor: the vendor that it shows: ``amd`` or ``intel``.
    :ivar early: moves before there is a vCPU.
    :ivar program: the guest's instructions.
    :ivar turns: moves before the first KVM_RUN, before the second, and so on.
    """

    mode: str = "real"
    irqchip: bool = False
    cpuid: tuple[str, ...] | None = None
    vendor: str = "amd"
    early: tuple[Call, ...] = ()
    program: tuple[Call, ...] = ()
    turns: tuple[tuple[Call, ...], ...] = ()

    def to_json(self) -> str:
        """Return it as one line of text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Scenario":
        """Return what :meth:`to_json` wrote."""
        return cls(**{name: _tuples(value) for name, value in json.loads(text).items()})

    def instructions(self, *names: str) -> list[Call]:
        """Return the guest's instructions of these names."""
        return [one for one in self.program if one[0] in names]

    def moves(self, *names: str) -> list[Call]:
        """Return user space's moves of these names."""
        calls = [*self.early, *(one for turn in self.turns for one in turn)]
        return [one for one in calls if one[0] in names]


def _tuples(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(map(_tuples, value))
    return value
