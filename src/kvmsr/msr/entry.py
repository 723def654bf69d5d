# SPDX-License-Identifier: Apache-2.0
"""
Entries
-------

What the catalog says of one MSR.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

__all__ = ("CATEGORIES", "Msr", "MsrField")

CATEGORIES: Final = ("control", "model-specific", "package-window")
"""What an MSR is there for: it steers the CPU, belongs to one model, or looks into the package."""


class MsrField(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    Some neighbouring bits of an MSR.

    :ivar name: what it is called here; unique in its MSR.
    :ivar low: the lowest bit.
    :ivar high: the highest.
    :ivar about: what it means, in a few words.
    :ivar kind: what its bits do, as in a policy's ``bits``: ``rw``, ``ro``, ``w1c`` and so on.
    :ivar values: what numbers mean, where they are an enumeration.
    :ivar scale: what one step is worth, in *unit*.
    :ivar unit: W, MHz and the like; "" for a plain number.
    """

    name: str
    low: int
    high: int
    about: str = ""
    kind: str = "rw"
    values: Mapping[int, str] = {}
    scale: float = 1.0
    unit: str = ""

    @property
    def mask(self) -> int:
        """Return the field's bits."""
        return (2 << self.high) - (1 << self.low)

    @property
    def span(self) -> str:
        """Return its bits as people write them, ``15:8`` or ``3``."""
        return f"{self.high}:{self.low}" if self.high > self.low else f"{self.low}"

    def of(self, value: int) -> int:
        """Return the field of a whole register."""
        return (value & self.mask) >> self.low

    def meaning(self, number: int) -> str:
        """Return in words what the field's *number* means, or ""."""
        if number in self.values:
            return self.values[number]
        if self.unit:
            return f"{number * self.scale:g} {self.unit}"
        return ""


class Msr(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """
    One MSR.

    :ivar index: 0 to 2**32 - 1.
    :ivar name: its canonical name.
    :ivar aliases: its other names.
    :ivar vendors: whose CPUs (or hypervisors) have it: ``intel``, ``amd``, ``kvm``, ``hyperv``.
    :ivar models: which of their families or models, in words; "" for all that have it at all.
    :ivar about: what it is, in a sentence; "" where only its name is known here.
    :ivar scope: what has one of its own: ``thread``, ``core`` or ``package``; "" if not known here.
    :ivar access: ``rw``, ``ro`` or ``wo``; "" if not known here.
    :ivar reset: what it holds after reset, where that is defined.
    :ivar category: one of :data:`CATEGORIES`, or "".
    :ivar fields: its fields, from the lowest; empty where none are known here.
    :ivar rest: what the bits outside of all fields are: ``reserved``, or "" where that is open.
    :ivar kvm: what KVM does with it beyond :func:`kvmsr.msr.handled`, in a sentence.
    :ivar sources: where these facts are from.
    """

    index: int
    name: str
    aliases: tuple[str, ...] = ()
    vendors: tuple[str, ...] = ()
    models: str = ""
    about: str = ""
    scope: str = ""
    access: str = ""
    reset: int | None = None
    category: str = ""
    fields: tuple[MsrField, ...] = ()
    rest: str = ""
    kvm: str = ""
    sources: tuple[str, ...] = ()

    @property
    def reserved(self) -> int:
        """Return the bits that are reserved, as far as that is known."""
        if self.rest != "reserved":
            return 0
        return (1 << 64) - 1 & ~sum(field.mask for field in self.fields)
