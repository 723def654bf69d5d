# SPDX-License-Identifier: Apache-2.0
"""
Firecracker's CPU templates
---------------------------

``{"msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1x0…"}]}``: the value of an MSR when the guest
starts; x leaves a bit to KVM. (docs/cpu_templates of Firecracker.)
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Final

from kvmsr.msr import catalog
from kvmsr.policy.actions import Plain, Value
from kvmsr.policy.file.formats.statement import Statement, each_msr, refuse
from kvmsr.policy.policy import Policy
from kvmsr.policy.rule import Rule

__all__ = ("looks_like", "read", "write")

_BITMAP: Final = re.compile(r"0b([01x_]+)")


def looks_like(text: str) -> bool:
    """Return whether *text* seems to be a template."""
    return text.lstrip().startswith("{") and '"msr_modifiers"' in text


def read(text: str, source: str) -> Iterator[Statement]:
    """Yield what the template says about MSRs; raise PolicyError if it is malformed."""
    try:
        template: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise refuse(source, error.lineno, f"invalid JSON: {error.msg}") from None
    modifiers = template.get("msr_modifiers") if isinstance(template, dict) else None
    if not isinstance(modifiers, list):
        raise refuse(source, 1, "there is no list msr_modifiers")
    lines = _lines(text)
    for number, modifier in enumerate(modifiers):
        line = lines[number] if number < len(lines) else 1
        yield _statement(modifier, f"msr_modifiers[{number}]", line, source)
    others = [key for key in template if key != "msr_modifiers" and template[key]]
    if others:
        yield Statement(1, None, ", ".join(others), None, "policies are only about MSRs")


def _lines(text: str) -> list[int]:
    """Return the line of each modifier's address."""
    start = text.index('"msr_modifiers"')
    found = re.finditer(r'"addr"', text[start:])
    return [text.count("\n", 0, start + match.start()) + 1 for match in found]


def _statement(modifier: Any, what: str, line: int, source: str) -> Statement:
    addr = modifier.get("addr") if isinstance(modifier, dict) else None
    bitmap = modifier.get("bitmap") if isinstance(modifier, dict) else None
    if not isinstance(addr, str) or not re.fullmatch(r"0x[0-9a-fA-F]{1,8}|\d{1,10}", addr):
        raise refuse(source, line, f'{what}.addr must be a string such as "0x10a"')
    match = _BITMAP.fullmatch(bitmap) if isinstance(bitmap, str) else None
    index = int(addr, 0)
    if match is None or index >> 32:
        raise refuse(source, line, f'{what}.bitmap must be a string of 0, 1 and x: "0b10x"')
    bits = match[1].replace("_", "")
    if len(bits) > 64:
        raise refuse(source, line, f"{what}.bitmap has {len(bits)} bits, but an MSR has 64")
    bits = bits.rjust(64, "x")
    value = int(bits.replace("x", "0"), 2)
    free = bits.count("x")
    lost = f"{free} bits are 0, and not left to KVM" if free else ""
    if catalog().get(index) is not None and catalog()[index].access == "ro":
        rule = Rule(index, read=Value(value), write=Plain.FAULT)
    else:
        rule = Rule(index, read=Plain.SHADOW, write=Plain.SHADOW, reset=value)
    return Statement(line, index, f"initially holds {value:#x}", rule, lost)


def write(policy: Policy) -> tuple[str, list[Rule]]:
    """Return *policy* as a template, and the rules that it cannot express."""
    said, left = each_msr(policy, _first_value)
    modifiers = [{"addr": f"{index:#x}", "bitmap": f"0b{value:064b}"} for index, value in said]
    return json.dumps({"msr_modifiers": modifiers}, indent=2) + "\n", left


def _first_value(rule: Rule) -> int | None:
    if isinstance(rule.read, Value) and rule.write is Plain.FAULT:
        return rule.read.value
    if rule.read is Plain.SHADOW and rule.write is Plain.SHADOW and rule.bits is None:
        return rule.reset
    return None
