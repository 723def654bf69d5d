# SPDX-License-Identifier: Apache-2.0
"""
Entries
-------

What the catalog says about an MSR. An index that means different things on different CPUs has an
entry for each meaning.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from kvmsr.msr.cpu import Cpu, cpu_sets

__all__ = ("CATEGORIES", "WHOLE", "Msr", "MsrField")

CATEGORIES: Final = ("control", "model-specific", "package-window")
"""Kinds of MSRs: those that control the CPU, those of single models, and views of the package."""
WHOLE: Final = ("address", "linear", "mask")
"""Forms of fields that have an address's upper bits where the address has them."""


class MsrField(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    A field of an MSR: adjacent bits with a meaning.

    :ivar name: the field's name, unique within the MSR.
    :ivar low: the lowest bit.
    :ivar high: the highest bit.
    :ivar about: the field's meaning, in a few words.
    :ivar kind: how its bits behave, as in a policy's ``bits``: ``rw``, ``ro``, ``w1c`` and so on.
    :ivar values: names of values, if the field is an enumeration.
    :ivar scale: value of one step, in *unit*.
    :ivar unit: W, MHz and so on; "" for a plain number.
    :ivar form: the formula by which its number is read, one of ``kvmsr.msr.forms.FORMS``; "" for
        *scale* times the number, or no formula.
    """

    name: str
    low: int
    high: int
    about: str = ""
    kind: str = "rw"
    values: Mapping[int, str] = {}
    scale: float = 1.0
    unit: str = ""
    form: str = ""

    @property
    def is_flag(self) -> bool:
        """Return whether the field is a single bit."""
        return self.low == self.high

    @property
    def steps(self) -> str:
        """Return what its number counts as text, ``in 100 MHz`` or ``in W``; "" if nothing."""
        if not self.unit:
            return ""
        return f"in {self.unit}" if self.form else f"in {self.scale:g} {self.unit}"

    @property
    def shift(self) -> int:
        """Return the number of bits below the field's number: none for an address, a whole one."""
        return 0 if self.form in WHOLE else self.low

    @property
    def mask(self) -> int:
        """Return the mask of the field's bits."""
        return (2 << self.high) - (1 << self.low)

    @property
    def span(self) -> str:
        """Return the range of the field's bits as text, ``15:8`` or ``3``."""
        return f"{self.high}:{self.low}" if self.high > self.low else f"{self.low}"

    def of(self, value: int) -> int:
        """Return the field's number in *value*, a register's value."""
        return (value & self.mask) >> self.shift


class Msr(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    An MSR.

    :ivar index: 0 to 2**32 - 1.
    :ivar name: the canonical name.
    :ivar aliases: other names.
    :ivar vendors: whose CPUs or hypervisors have it: ``intel``, ``amd``, ``kvm``, ``hyperv``.
    :ivar cpus: the CPUs for which the entry holds, as :func:`~kvmsr.msr.cpu.cpu_sets` reads them;
        empty for all CPUs of *vendors*.
    :ivar about: a description in one sentence; "" if only the name is known.
    :ivar scope: the unit that has a register of its own: ``thread``, ``core``, ``package`` or
        ``vm``; "" if not known.
    :ivar access: ``rw``, ``ro`` or ``wo``; "" if not known.
    :ivar reset: the value after reset; None if it is not defined or not known.
    :ivar category: one of :data:`CATEGORIES`, or "".
    :ivar fields: the fields, from the lowest bit up; empty if none are known.
    :ivar rest: what the bits outside all fields are: ``reserved``, or "" if not known.
    :ivar summary: the formula by which a whole value is said in words, one of
        ``kvmsr.msr.summaries.SUMMARIES``; "" for none.
    :ivar kvm: what KVM does with it, in a sentence, in addition to :func:`kvmsr.msr.handled`.
    :ivar sources: the sources of these facts.
    """

    index: int
    name: str
    aliases: tuple[str, ...] = ()
    vendors: tuple[str, ...] = ()
    cpus: tuple[str, ...] = ()
    about: str = ""
    scope: str = ""
    access: str = ""
    reset: int | None = None
    category: str = ""
    fields: tuple[MsrField, ...] = ()
    rest: str = ""
    summary: str = ""
    kvm: str = ""
    sources: tuple[str, ...] = ()

    def holds_on(self, cpu: Cpu) -> bool:
        """Return whether the entry holds for *cpu*; what hypervisors offer, they offer on any."""
        if "kvm" in self.vendors or "hyperv" in self.vendors:
            return True
        if not self.cpus:
            return cpu.vendor in self.vendors
        return any(cpu.is_of(cpu_sets(spec)) for spec in self.cpus)

    @property
    def reserved(self) -> int:
        """Return the mask of the bits that are known to be reserved."""
        if self.rest != "reserved":
            return 0
        return (1 << 64) - 1 & ~sum(field.mask for field in self.fields)
