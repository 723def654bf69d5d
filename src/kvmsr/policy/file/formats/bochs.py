# SPDX-License-Identifier: Apache-2.0
"""
Bochs' msrs.def
---------------

``0x02c  0  RESET_HI RESET_LO  RSRVD_HI RSRVD_LO  IGNRD_HI IGNRD_LO``: registers with a reset value,
reserved bits, which fault when changed, and ignored bits, which never change.
"""

import re
from collections.abc import Iterator
from typing import Final

from kvmsr.policy.actions import Plain
from kvmsr.policy.bits import Bits
from kvmsr.policy.file.formats.statement import Statement, each_msr, refuse
from kvmsr.policy.policy import Policy
from kvmsr.policy.rule import Rule

__all__ = ("looks_like", "read", "write")

_HEX: Final = r"(?:0x)?([0-9a-fA-F]{1,8})"
_LINE: Final = re.compile(r"\s*" + _HEX + r"\s+([0-9])" + (r"\s+" + _HEX) * 6 + r"\s*(?:#.*)?")
_U64: Final = (1 << 64) - 1
_TYPES: Final = {1: "a linear address", 2: "a physical address"}


def looks_like(text: str) -> bool:
    """Return whether *text* seems to be such a file."""
    said = [x for x in text.splitlines() if x.strip() and not x.lstrip().startswith("#")]
    return bool(said) and _LINE.fullmatch(said[0]) is not None


def read(text: str, source: str) -> Iterator[Statement]:
    """Yield the statements of the file; raise PolicyError for a malformed line."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            message = "write an address, a type and six numbers"
            raise refuse(source, number, f"{line.strip()[:60]!r}: {message}")
        index, kind = int(match[1], 16), int(match[2])
        words = [int(match[n], 16) for n in range(3, 9)]
        reset, reserved, ignored = (words[n] << 32 | words[n + 1] for n in (0, 2, 4))
        if kind and kind not in _TYPES:
            raise refuse(source, number, f"there is no type {kind}: write 0, 1 or 2")
        if kind:
            reserved = ignored = reset = 0
        ignored &= ~reserved
        bits = None
        if reserved | ignored:
            bits = Bits(rw=_U64 & ~(reserved | ignored), ro=ignored, fault=reserved)
        rule = Rule(index, read=Plain.SHADOW, write=Plain.SHADOW, reset=reset, bits=bits)
        said = f"initially holds {reset:#x}" + (f", and {_TYPES[kind]}" if kind else "")
        lost = f"writing a value that is not {_TYPES[kind]} does not fault" if kind else ""
        yield Statement(number, index, said, rule, lost)


def write(policy: Policy) -> tuple[str, list[Rule]]:
    """Return *policy* as such a file, and the rules that it cannot express."""
    said, left = each_msr(policy, _words)
    return "".join(f"0x{index:08x} 0 {words}\n" for index, words in said), left


def _words(rule: Rule) -> str | None:
    bits = rule.bits or Bits(rw=_U64)
    if rule.read is not Plain.SHADOW or rule.write is not Plain.SHADOW:
        return None
    if bits.rw | bits.ro | bits.fault != _U64:
        return None
    values = (rule.reset, bits.fault, bits.ro)
    return " ".join(f"{v >> 32:08x} {v & 0xFFFF_FFFF:08x}" for v in values)
