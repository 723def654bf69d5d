# SPDX-License-Identifier: Apache-2.0
"""
Kernel logs
-----------

What KVM and guests have logged about MSRs over the years, from dmesg, a journal or a trace:
"unhandled rdmsr: 0x…", "Unhandled WRMSR(0x…) = 0x…", ``kvm_msr`` events, "unchecked MSR access".
"""

import re
from collections.abc import Iterator
from typing import Final

from kvmsr.policy.actions import Plain, Value
from kvmsr.policy.file.formats.statement import Statement
from kvmsr.policy.rule import Rule

__all__ = ("looks_like", "read")

_HEX: Final = r"(?:0x)?([0-9a-fA-F]{1,8})\b"
_DATA: Final = r"(?:\W+(?:data\W*)?(?:0x)?([0-9a-fA-F]{1,16})\b)?"
_HOST: Final = re.compile(
    r"(unhandled|ignored|disabled perfctr|unimplemented perfctr)\s+(rd|wr)msr[:(]\s*"
    + _HEX
    + r"\)?(?:\s*=)?"
    + _DATA,
    re.IGNORECASE,
)
_TRACE: Final = re.compile(
    r"kvm_msr:\s*(?:msr_)?(read|write)\s+" + _HEX + r"\s*=\s*(?:0x)?([0-9a-fA-F]{1,16})(.*)"
)
_GUEST: Final = re.compile(
    r"unchecked MSR access error:\s*(RD|WR)MSR\s+(?:from|to)\s+"
    + _HEX
    + r"(?:.*?tried to write\s+(?:0x)?([0-9a-fA-F]{1,16}))?"
)


def looks_like(text: str) -> bool:
    """Return whether *text* seems to have such lines."""
    return any(_parsed(line) is not None for line in text.splitlines())


def read(text: str, source: str) -> Iterator[Statement]:
    """Yield the statements of the lines, with one rule for each MSR; skip other lines."""
    del source
    found = [
        (number, *parsed)
        for number, line in enumerate(text.splitlines(), 1)
        for parsed in (_parsed(line),)
        if parsed is not None
    ]
    written = {index for _, index, is_write, _, knows in found if is_write and not knows}
    made: set[int] = set()
    for number, index, _, said, knows in found:
        if knows:
            yield Statement(number, index, said, None, "KVM answered it, so no rule is needed")
            continue
        if index in made:
            yield Statement(number, index, said, None)
            continue
        made.add(index)
        if index in written:
            rule = Rule(index, read=Plain.SHADOW, write=Plain.SHADOW, log="once")
        else:
            rule = Rule(index, read=Value(0), write=Plain.IGNORE, log="once")
        yield Statement(number, index, said, rule, guess=True)


def _parsed(line: str) -> tuple[int, bool, str, bool] | None:
    """Return the index, whether it was a write, what happened, and whether KVM answered it."""
    match = _HOST.search(line)
    if match:
        is_write = match[2].lower() == "wr"
        value = f" of 0x{match[4]}" if is_write and match[4] else ""
        return int(match[3], 16), is_write, f"{match[1].lower()} {_kind(is_write)}{value}", False
    match = _TRACE.search(line)
    if match:
        is_write, faulted = match[1] == "write", "#GP" in match[4]
        said = f"{_kind(is_write)} of 0x{match[3]}" + (", which faulted" if faulted else "")
        return int(match[2], 16), is_write, said, not faulted
    match = _GUEST.search(line)
    if match:
        is_write = match[1] == "WR"
        value = f" of 0x{match[3]}" if match[3] else ""
        return int(match[2], 16), is_write, f"{_kind(is_write)}{value} faulted in a guest", False
    return None


def _kind(is_write: bool) -> str:
    return "write" if is_write else "read"
