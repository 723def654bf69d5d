# SPDX-License-Identifier: Apache-2.0
"""
Context
-------

What a field's number is read with: the whole value, and the values of other MSRs.
"""

from collections.abc import Mapping
from typing import Final

from kvmsr.msr.entry import Msr

__all__ = ("USUAL", "Context")

USUAL: Final = {
    "MSR_RAPL_POWER_UNIT": 0xA0E03,  # 1/8 W, 61 µJ, 977 µs: Intel's Core and Xeon since Haswell
    "MSR_AMD_RAPL_POWER_UNIT": 0xA1003,  # 1/8 W, 15.3 µJ, 977 µs: families 17h and 19h
}
"""Values that MSRs have on most machines, for those that are not known."""


class Context:
    """
    A value of an MSR, and what else is known.

    :ivar msr: the MSR.
    :ivar value: its value.
    :ivar assumed: the usual values that were used for MSRs whose values are not known, by name.
    """

    __slots__ = ("_others", "assumed", "msr", "value")

    def __init__(self, msr: Msr, value: int, others: Mapping[str, int]) -> None:
        self.msr = msr
        self.value = value
        self.assumed: dict[str, int] = {}
        self._others = others

    def number(self, name: str) -> int:
        """Return the number in field *name*; 0 if the MSR has no such field."""
        found = next((field for field in self.msr.fields if field.name == name), None)
        return found.of(self.value) if found else 0

    def other(self, name: str) -> int | None:
        """Return the value of another MSR, which may be its usual value, or None."""
        if name in self._others:
            return self._others[name]
        if name in USUAL:
            self.assumed[name] = USUAL[name]
        return USUAL.get(name)
