# SPDX-License-Identifier: Apache-2.0
"""
Others' headers
---------------

MSRs as edk2's and ia32-doc's C headers have them: names, indices, scope, access and fields. The
headers are read where they lie; nothing of them is kept.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from os.path import commonprefix
from pathlib import Path

__all__ = ("Claim", "Header", "Range", "read_edk2", "read_ia32_doc")

_SCOPES = {"package": "package", "core": "core", "thread": "thread", "shared": "package"}
_ACCESS = {"RW": "rw", "RO": "ro", "R0": "ro", "R": "ro", "WO": "wo", "W": "wo"}


@dataclass(frozen=True)
class Range:
    """A field: its name in the header, and its lowest and highest bit."""

    name: str
    low: int
    high: int


@dataclass
class Claim:
    """What a header says about an MSR, first its name there. Scope and access may be ""."""

    names: tuple[str, ...]
    index: int
    scope: str = ""
    access: str = ""
    fields: list[Range] = field(default_factory=list)


@dataclass
class Header:
    """A header: what it says, and the family and models that it is about (0, none: all)."""

    name: str
    family: int = 0
    models: tuple[int, ...] = ()
    claims: list[Claim] = field(default_factory=list)


def read_edk2(folder: Path) -> list[Header]:
    """Return Intel's headers under *folder*, a tree of edk2."""
    found = folder / "MdePkg/Include/Register/Intel"
    paths = [found / "ArchitecturalMsr.h", *sorted((found / "Msr").glob("*Msr.h"))]
    return [_edk2(path.stem, path.read_text("utf-8")) for path in paths]


def read_ia32_doc(folder: Path) -> list[Header]:
    """Return the header of ia32-doc in *folder*, a tree of that project."""
    claims: list[Claim] = []
    groups: list[tuple[str, int]] = []
    layouts: dict[str, list[Range]] = {}
    comment = ""
    tokens = r"/\*\*.*?\*/|^#define (IA32_\w+) +(0x\w{8})$|^typedef union\n.*?^\} (\w+);"
    start = "@defgroup MODEL_SPECIFIC_REGISTERS"
    chapter = (folder / "out/ia32.h").read_text("utf-8").partition(start)[2]
    for found in re.finditer(tokens, chapter, re.M | re.S):
        (name, index, union), text = found.groups(), found[0]
        if name and not name.endswith(("_BIT", "_FLAG", "_MASK", "_SIZE", "_COUNT", "K_BASE")):
            claims.append(Claim((name,), int(index, 16), access=_access(comment)))
        elif union and claims:
            layouts[union] = list(_fields(text))
            if union == f"{claims[-1].names[0]}_REGISTER":
                claims[-1].fields = layouts[union]
        elif opened := re.search(r"@defgroup (\w+)", text):
            groups.append((opened[1], len(claims)))
        elif "@}" in text and not groups:
            break
        elif "@}" in text:
            # A bank is a group; its MSRs share the layout that bears the group's name.
            group, first = groups.pop()
            for claim in claims[first:]:
                claim.fields = claim.fields or layouts.get(f"{group}_REGISTER", [])
        comment = text
    return [Header("ia32.h", claims=claims)]


def _edk2(name: str, text: str) -> Header:
    family = re.search(r"DisplayFamily == 0x(\w+)", text)
    models = tuple(int(model, 16) for model in re.findall(r"DisplayModel == 0x(\w+)", text))
    header = Header(name, int(family[1], 16) if family else 0, models)
    unions = {
        union[2]: list(_fields(union[1]))
        for union in re.finditer(r"^typedef union \{(.*?)^\} (\w+);", text, re.M | re.S)
    }
    parts = r"/\*\*\n((?:(?!\*/).)*?)\*\*/\n((?:#define +MSR_\w+ +0x\w+\n)+)"
    for comment, defines in re.findall(parts, text, re.S):
        layout = re.search(r"Described by the type\s+(\w+)", comment)
        fields = unions.get(layout[1], []) if layout else []
        scope = re.match(r"\s*(\w+)\.", comment)
        known = _SCOPES.get(scope[1].lower(), "") if scope else ""
        for define, index in re.findall(r"#define +(\w+) +(0x\w+)", defines):
            said = comment.partition("@param")[0]
            manual = re.findall(rf"@note {define}\s+is defined as (\w+)", comment)
            names = (define, *manual)
            header.claims.append(Claim(names, int(index, 16), known, _access(said), fields))
    # MSR_SKYLAKE_POWER_CTL is Skylake's MSR_POWER_CTL.
    model = commonprefix([claim.names[0] for claim in header.claims])  # noqa: RUF071
    for claim in header.claims if family else ():
        claim.names += ("MSR_" + claim.names[0].removeprefix(model),)
    return header


def _access(comment: str) -> str:
    found = re.search(r"\((R/W|RW|R/O|RO|R0|R|W/O|WO|W)\)", comment)
    return _ACCESS[found[1].replace("/", "")] if found else ""


def _fields(union: str) -> Iterator[Range]:
    """Yield the fields of the first structure in *union*; halves of one field are joined."""
    found = re.search(r"struct\s*\{(.*?)\n\s*\}", union, re.S)
    low, made = 0, []
    for name, bits in re.findall(
        r"^\s*UINT(?:32|64)\s+(\w+)\s*:\s*(\d+);", found[1] if found else "", re.M
    ):
        high = low + int(bits) - 1
        if made and low == 32 and name in (made[-1].name + "Hi", made[-1].name + "2"):
            made[-1] = Range(made[-1].name, made[-1].low, high)
        elif not name.lower().startswith("reserved"):
            made.append(Range(name, low, high))
        low = high + 1
    yield from made
