# SPDX-License-Identifier: Apache-2.0
"""
msr-safe's allow lists
----------------------

``0x00000010 0x0000000000000000 # "NAME"``: an MSR that may be read, and a mask of the bits that may
be written; writes do not change any other bit. (The README of LLNL's msr-safe.)
"""

import re
from collections.abc import Iterator
from typing import Final

from kvmsr.policy.actions import Host, Plain
from kvmsr.policy.bits import Bits
from kvmsr.policy.file.formats.statement import Statement, each_msr, refuse
from kvmsr.policy.policy import Policy
from kvmsr.policy.rule import Rule

__all__ = ("looks_like", "read", "write")

_LINE: Final = re.compile(r"\s*(0x[0-9a-fA-F]{1,8})\s+(0x[0-9a-fA-F]{1,16})\s*(?:#.*)?")
_U64: Final = (1 << 64) - 1


def looks_like(text: str) -> bool:
    """Return whether *text* seems to be such a list."""
    lines = [line for line in text.splitlines() if line.strip()]
    said = [line for line in lines if not line.lstrip().startswith("#")]
    if said:
        return _LINE.fullmatch(said[0]) is not None
    return any(_LINE.fullmatch(line.lstrip("# ")) for line in lines)


def read(text: str, source: str) -> Iterator[Statement]:
    """Yield the statements of the list; raise PolicyError for a malformed line."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            raise refuse(source, number, f"{line.strip()[:60]!r}: write 0xMSR 0xMASK # comment")
        index, mask = int(match[1], 16), int(match[2], 16)
        if not mask:
            rule = Rule(index, read=Host(None), write=Plain.FAULT)
            yield Statement(number, index, "may be read", rule)
            continue
        bits = Bits(rw=mask, ro=_U64 & ~mask)
        rule = Rule(index, read=Plain.SHADOW, write=Plain.SHADOW, bits=bits)
        lost = "the guest gets a register of its own; the host's is neither read nor written"
        said = f"may be read; bits {mask:#x} may be written"
        yield Statement(number, index, said, rule, lost, guess=True)


def write(policy: Policy) -> tuple[str, list[Rule]]:
    """Return *policy* as such a list, and the rules that it cannot express."""
    said, left = each_msr(policy, _mask)
    return "".join(f"0x{index:08x} 0x{mask:016x}\n" for index, mask in said), left


def _mask(rule: Rule) -> int | None:
    if rule.read == Host(None) and rule.write is Plain.FAULT:
        return 0
    if rule.read is Plain.SHADOW and rule.write is Plain.SHADOW and not rule.reset:
        bits = rule.bits or Bits(rw=_U64)
        if bits.rw | bits.ro == _U64 and bits.rw:
            return bits.rw
    return None
