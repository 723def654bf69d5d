# SPDX-License-Identifier: Apache-2.0
"""
CPUID features
--------------

CPUID's bits by name, and those by which operating systems decide whether they access an MSR at all.
"""

import functools
from dataclasses import dataclass
from typing import Any, Final

from kvmsr.errors import UsageError
from kvmsr.msr.catalog import catalog
from kvmsr.msr.data_file import data_file
from kvmsr.text import shown

__all__ = ("Enumerated", "Feature", "enumerated", "features", "find_feature")

_VENDORS: Final = {
    "GenuineIntel": "intel", "AuthenticAMD": "amd", "HygonGenuine": "amd", "": "",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Feature:
    """A CPUID bit: leaf *function*, subleaf *index*, *register* (``eax`` to ``edx``), *bit*."""

    function: int
    index: int
    register: str
    bit: int

    def __str__(self) -> str:
        """Return the bit as manuals write it, for example ``CPUID.06H:ECX[3]``."""
        leaf = f"{self.function:08X}H" if self.function >> 31 else f"{self.function:02X}H"
        subleaf = f".{self.index}" if self.index else ""
        return f"CPUID.{leaf}{subleaf}:{self.register.upper()}[{self.bit}]"


@dataclass(frozen=True, slots=True)
class Enumerated:
    """
    MSRs that operating systems access only where CPUID has a feature.

    :ivar name: the name of the feature, which consists of these MSRs and no more.
    :ivar feature: its bit.
    :ivar msrs: the MSRs that are there with the feature.
    :ivar needs: the name of the feature without which it means nothing, or "".
    :ivar vendor: ``intel`` or ``amd``, if the bit means nothing on other vendors' CPUs; else "".
    """

    name: str
    feature: Feature
    msrs: tuple[int, ...]
    needs: str
    vendor: str

    def __str__(self) -> str:
        """Return name, bit and vendor, for example ``epb (CPUID.06H:ECX[3], Intel)``."""
        vendor = {"intel": ", Intel", "amd": ", AMD"}.get(self.vendor, "")
        return f"{self.name} ({self.feature}{vendor})"

    @property
    def msr_names(self) -> str:
        """Return the names of the MSRs, as a list in words."""
        return ", ".join(catalog().name(index) or f"{index:#x}" for index in self.msrs)

    def is_of(self, vendor: str) -> bool:
        """Return whether the bit has this meaning on the CPUs of *vendor*, CPUID's 12 letters."""
        return self.vendor in ("", _VENDORS.get(vendor, "other"))


@functools.cache
def _data() -> dict[str, Any]:
    import tomllib

    return tomllib.loads(data_file("cpu_features.toml").decode())


@functools.cache
def features() -> dict[str, Feature]:
    """Return the named features."""
    found = {}
    for entry in _data()["register"]:
        for bit, names in enumerate(entry["bits"].split()):
            for name in names.split("|"):
                if name != "_":
                    found[name] = Feature(
                        entry["function"], entry.get("index", 0), entry["register"], bit
                    )
    return found


def find_feature(name: str) -> Feature:
    """
    Return the feature called *name*, such as ``x2apic`` or ``sse4_2``; "-" may stand for "_".

    :raises UsageError: if there is none; names those that look like it.
    """
    known = features()
    feature = known.get(name) or known.get(name.replace("-", "_"))
    if feature is None:
        import difflib

        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"no CPUID feature is called {shown(name)}{hint}")
    return feature


@functools.cache
def enumerated() -> tuple[Enumerated, ...]:
    """Return the features that consist of MSRs alone."""
    return tuple(
        Enumerated(
            row["feature"],
            features()[row["feature"]],
            tuple(row["msr"]),
            row.get("needs", ""),
            row.get("vendor", ""),
        )
        for row in _data()["enumerated"]
    )
