# SPDX-License-Identifier: Apache-2.0
"""
CPUs
----

Which CPU is meant: by signature, by code name, this machine's, or that of a CPUID dump.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from kvmsr.errors import UsageError
from kvmsr.msr.data_file import data_file
from kvmsr.text import shown

__all__ = ("Cpu", "CpuSet", "cpu_names", "find_cpu")

_VENDORS: Final = {
    "GenuineIntel": "intel", "AuthenticAMD": "amd", "HygonGenuine": "amd",
}  # fmt: skip
_SPEC: Final = re.compile(
    r"(intel|amd)(?::([0-9a-f]{2})(?:_([0-9a-f]{2})(?:-([0-9a-f]{2}))?"
    r"(?:\.([0-9a-f])(?:-([0-9a-f]))?)?)?)?",
    re.IGNORECASE,
)
_WRITTEN: Final = re.compile(r"(intel|amd):([0-9A-F]{2,3})_([0-9A-F]{2})(?:\.([0-9A-F]))?")
_LEAF: Final = re.compile(
    r"^\s*(?:CPUID )?(?:0x)?0{7}([01])(?: 0x00)?: "
    r"(?:eax=0x)?(\w{8})(?: ebx=0x|-)(\w{8})(?: ecx=0x|-)(\w{8})(?: edx=0x|-)(\w{8})",
    re.MULTILINE,
)
_MOST: Final = 16 << 20
"""The largest dump in bytes: that of a machine with a thousand CPUs has a few million."""


class CpuSet(NamedTuple):
    """
    CPUs with adjacent models or steppings.

    :ivar vendor: ``intel`` or ``amd``, which includes Hygon.
    :ivar families: first and last family, 0 to 0x10e, as CPUID's two family fields add up.
    :ivar models: first and last model, 0 to 0xff.
    :ivar steppings: first and last stepping, 0 to 15.
    """

    vendor: str
    families: tuple[int, int] = (0, 0x10E)
    models: tuple[int, int] = (0, 0xFF)
    steppings: tuple[int, int] = (0, 15)

    def meets(self, other: "CpuSet") -> bool:
        """Return whether some CPU is in both sets."""
        return self.vendor == other.vendor and all(
            mine[0] <= yours[1] and yours[0] <= mine[1]
            for mine, yours in zip(self[1:], other[1:], strict=True)
        )

    def __str__(self) -> str:
        """Return the set as ``--cpu`` and the catalog write it, for example ``amd:19_10-1F``."""
        if self.families[0] != self.families[1]:
            return self.vendor
        text = f"{self.vendor}:{self.families[0]:02X}"
        if self.models != (0, 0xFF) or self.steppings != (0, 15):
            text += "_" + _span(self.models, "02X")
        return text if self.steppings == (0, 15) else f"{text}.{_span(self.steppings, 'X')}"


class Cpu(NamedTuple):
    """
    A CPU, as far as CPUID's signature tells.

    :ivar vendor: ``intel``, ``amd`` (which includes Hygon), or CPUID's 12 letters of another.
    :ivar family: CPUID.01H:EAX, family and extended family added.
    :ivar model: the same for the model: 0 to 0xff.
    :ivar stepping: 0 to 15; None stands for any.
    """

    vendor: str
    family: int
    model: int
    stepping: int | None = None

    @classmethod
    def from_cpuid(cls, letters: str, eax: int) -> "Cpu":
        """
        Return the CPU that CPUID describes (SDM volume 2A, CPUID; APM volume 3, appendix E).

        :param letters: the 12 letters of leaf 0.
        :param eax: EAX of leaf 1.
        """
        family, model = eax >> 8 & 15, eax >> 4 & 15
        if family in (6, 15):
            model |= eax >> 12 & 0xF0
        if family == 15:
            family += eax >> 20 & 0xFF
        return cls(_VENDORS.get(letters, letters), family, model, eax & 15)

    def __str__(self) -> str:
        """Return the CPU as ``--cpu`` takes it, such as ``intel:06_8F`` or ``intel:06_55.7``."""
        text = f"{self.vendor}:{self.family:02X}_{self.model:02X}"
        return text if self.stepping is None else f"{text}.{self.stepping:X}"

    @classmethod
    def from_text(cls, text: str) -> "Cpu | None":
        """Return the CPU that ``str`` has written as *text*; None if it is something else."""
        match = _WRITTEN.fullmatch(text)
        if match is None:
            return None
        family, model, stepping = (None if n is None else int(n, 16) for n in match.groups()[1:])
        return cls(match[1], family or 0, model or 0, stepping)

    @property
    def name(self) -> str:
        """Return the code name, or "" if kvmsr knows none."""
        return next((name for name, sets in cpu_names().items() if self.is_of(sets)), "")

    def is_of(self, sets: Iterable[CpuSet]) -> bool:
        """Return whether the CPU is in one of *sets*."""
        steppings = (0, 15) if self.stepping is None else (self.stepping, self.stepping)
        family, model = (self.family, self.family), (self.model, self.model)
        mine = CpuSet(self.vendor, family, model, steppings)
        return any(mine.meets(one) for one in sets)


@functools.cache
def _data() -> dict[str, dict[str, Any]]:
    import tomllib

    return tomllib.loads(data_file("cpus.toml").decode())


@functools.cache
def cpu_names() -> Mapping[str, tuple[CpuSet, ...]]:
    """Return the code names and their CPUs; the first CPU of a name is the typical one."""
    return {
        name: tuple(_signature(spec) for spec in specs)
        for line, names in _data().items()
        if line != "aliases"
        for name, specs in names.items()
    }


@functools.cache
def cpu_sets(spec: str) -> tuple[CpuSet, ...]:
    """
    Return the CPUs that *spec*, an item of an entry's ``cpus``, stands for.

    :param spec: a signature (``intel``, ``amd:19``, ``intel:06_97-9A``, ``intel:06_55.5-7``), a
        code name, or a range of a line of code names: ``haswell..``, ``skylake..comet-lake``.
    :raises UsageError: if it is none of these.
    """
    if _SPEC.fullmatch(spec):
        return (_signature(spec),)
    first, dots, last = spec.partition("..")
    names = [_code_name(name) for name in ((first, last) if last else (first,))]
    if not dots:
        return cpu_names()[names[0]]
    line = next(list(line) for line in _data().values() if names[0] in line)
    if names[-1] not in line or line.index(names[-1]) < line.index(names[0]):
        raise UsageError(f"{shown(spec)}: {last} does not follow {first}")
    end = line.index(last) + 1 if last else len(line)
    chosen = line[line.index(names[0]) : end]
    return tuple(one for name in chosen for one in cpu_names()[name])


def find_cpu(spec: str) -> Cpu:
    """
    Return the CPU that a user means.

    :param spec: a signature (``intel:06_8F``, ``amd:19_01``, with ``.7`` for stepping 7), a code
        name (``sapphire-rapids``, ``zen4``), ``host``, or a file: a CPUID dump as ``cpuid -r`` or
        InstLatX64 write it, or a copy of /proc/cpuinfo.
    :raises UsageError: if it is none of these; suggests similar code names.
    """
    if spec == "host":
        return _from_text(Path("/proc/cpuinfo").read_text(), "/proc/cpuinfo")
    match = _SPEC.fullmatch(spec)
    if match and match[3] and not match[4] and not match[6]:
        found = _signature(spec)
        stepping = found.steppings[0] if match[5] else None
        return Cpu(found.vendor, found.families[0], found.models[0], stepping)
    if match:
        raise UsageError(f"{shown(spec)} is more than one CPU: write intel:06_8F or amd:19_01")
    if _known_name(spec) is None and ("/" in spec or "." in spec or Path(spec).is_file()):
        return _from_file(Path(spec))
    typical = cpu_names()[_code_name(spec)][0]
    stepping = None if typical.steppings == (0, 15) else typical.steppings[1]
    return Cpu(typical.vendor, typical.families[0], typical.models[0], stepping)


def _from_file(path: Path) -> Cpu:
    from kvmsr.files import read_regular

    try:
        text = read_regular(path, _MOST).decode("latin-1")
    except OSError as error:
        raise UsageError(f"cannot read CPUID dump {shown(str(path))}: {error.strerror}") from None
    return _from_text(text, str(path))


def _from_text(text: str, what: str) -> Cpu:
    leaves = {match[1]: [int(word, 16) for word in match.groups()[1:]] for match in _first(text)}
    if len(leaves) == 2:
        letters = b"".join(leaves["0"][at].to_bytes(4, "little") for at in (1, 3, 2))
        return Cpu.from_cpuid(letters.decode("latin-1"), leaves["1"][0])
    said: dict[str, str] = dict(
        re.findall(r"^(vendor_id|cpu family|model|stepping)\s*: (\S+)$", text, re.M)
    )
    if len(said) == 4:
        vendor = said["vendor_id"]
        family, model, stepping = (int(said[key]) for key in ("cpu family", "model", "stepping"))
        return Cpu(_VENDORS.get(vendor, vendor), family, model, stepping)
    raise UsageError(
        f"{shown(what)} has no CPU: it must be a CPUID dump with leaves 0 and 1, as cpuid -r writes"
        " it, or a copy of /proc/cpuinfo"
    )


def _first(text: str) -> Iterable[re.Match[str]]:
    """Return the dump's first leaf 0 and leaf 1: those of its first CPU."""
    return reversed(list(_LEAF.finditer(text)))


def _known_name(text: str) -> str | None:
    """Return the code name that *text* is or stands for, if any."""
    name = text.lower().replace("_", "-").replace(" ", "-")
    name = _data()["aliases"].get(name, name)
    return name if name in cpu_names() else None


def _code_name(text: str) -> str:
    name = _known_name(text)
    if name is not None:
        return name
    if ":" in text:
        raise UsageError(
            f"{shown(text)} is not a CPU: write VENDOR:FAMILY_MODEL, both in two hexadecimal"
            " digits, such as intel:06_8F or amd:19_01"
        )
    import difflib

    near = difflib.get_close_matches(text.lower(), [*cpu_names(), *_data()["aliases"]], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "write intel:06_8F, zen4 or host"
    raise UsageError(f"no CPU is called {shown(text)}; {hint}")


def _signature(spec: str) -> CpuSet:
    match = _SPEC.fullmatch(spec)
    assert match, spec
    family, model, last_model, stepping, last_stepping = (
        None if digits is None else int(digits, 16) for digits in match.groups()[1:]
    )
    made = CpuSet(match[1].lower())
    if family is not None:
        made = made._replace(families=(family, family))
    if model is not None:
        made = made._replace(models=(model, model if last_model is None else last_model))
    if stepping is not None:
        last = stepping if last_stepping is None else last_stepping
        made = made._replace(steppings=(stepping, last))
    return made


def _span(ends: tuple[int, int], form: str) -> str:
    first, last = (format(end, form) for end in ends)
    return first if first == last else f"{first}-{last}"
