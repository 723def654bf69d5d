# SPDX-License-Identifier: Apache-2.0
"""
crosvm's --userspace-msr
------------------------

``--userspace-msr 0x1a2,type=r,action=pass,from=cpu0``: an MSR that is passed to the host, or copied
from it once and then emulated. (crosvm had the option until 2024, in src/crosvm/config.rs.)
"""

import re
from collections.abc import Iterator
from typing import Final

from kvmsr.policy.actions import Host, Plain
from kvmsr.policy.file.formats.statement import Statement, each_msr, refuse
from kvmsr.policy.policy import Policy
from kvmsr.policy.rule import Rule

__all__ = ("looks_like", "read", "write")

_OPTION: Final = re.compile(r"--userspace-msr[= ]\s*['\"]?([^\s'\"\\]+)")
_BARE: Final = re.compile(r"(?:0x[0-9a-fA-F]+|\d+),\s*(?:type|action)=\S+")
_KEYS: Final = {
    "type": ("r", "w", "rw", "wr"),
    "action": ("pass", "emu"),
    "from": ("cpu0",),
    "filter": ("yes", "no"),
}


def looks_like(text: str) -> bool:
    """Return whether *text* seems to have such options."""
    return bool(_OPTION.search(text) or any(_BARE.fullmatch(x.strip()) for x in text.split("\n")))


def read(text: str, source: str) -> Iterator[Statement]:
    """Yield the statements of the options; raise PolicyError for one that crosvm would reject."""
    for number, line in enumerate(text.splitlines(), 1):
        found = _OPTION.findall(line)
        if not found and _BARE.fullmatch(line.strip()):
            found = [line.strip()]
        for option in found:
            yield _statement(option, number, source)


def _statement(option: str, line: int, source: str) -> Statement:
    number, *pairs = option.split(",")
    try:
        index = int(number, 0)
    except ValueError:
        index = -1
    if not 0 <= index < 1 << 32:
        raise refuse(source, line, f"{number!r} is not an MSR: write 0x1a2")
    given = {"from": "", "filter": "", "type": "", "action": ""}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in _KEYS:
            raise refuse(source, line, f"unknown key {key!r}: there are {', '.join(_KEYS)}")
        if value not in _KEYS[key]:
            known = ", ".join(_KEYS[key])
            raise refuse(source, line, f"{key} must be one of {known}, not {value!r}")
        given[key] = value
    if not given["type"] or not given["action"]:
        raise refuse(source, line, f"{option} needs type= and action=")
    reads, writes = "r" in given["type"], "w" in given["type"]
    if given["action"] == "pass":
        host = Host(0 if given["from"] else None)
        rule = Rule(
            index, read=host if reads else Plain.FAULT, write=host if writes else Plain.FAULT
        )
        lost = "writes only reach the host with allow_host_writes = true" if writes else ""
        return Statement(line, index, f"is passed to the host ({given['type']})", rule, lost)
    shadow = Plain.SHADOW
    rule = Rule(
        index, read=shadow if reads else Plain.FAULT, write=shadow if writes else Plain.FAULT
    )
    lost = "it starts with 0, not with the host's value: set reset"
    return Statement(line, index, f"is emulated ({given['type']})", rule, lost, guess=True)


def write(policy: Policy) -> tuple[str, list[Rule]]:
    """Return *policy* as options, one per line, and the rules that they cannot express."""
    said, left = each_msr(policy, _option)
    return "".join(f"--userspace-msr {index:#x},{option}\n" for index, option in said), left


def _option(rule: Rule) -> str | None:
    kinds = [action for action in (rule.read, rule.write) if action is not Plain.FAULT]
    if not kinds or None in (rule.read, rule.write) or any(kind != kinds[0] for kind in kinds):
        return None
    type_ = ("" if rule.read is Plain.FAULT else "r") + ("" if rule.write is Plain.FAULT else "w")
    if kinds[0] is Plain.SHADOW and not rule.reset and rule.bits is None:
        return f"type={type_},action=emu"
    if isinstance(kinds[0], Host) and kinds[0].cpu in (0, None):
        return f"type={type_},action=pass" + (",from=cpu0" if kinds[0].cpu == 0 else "")
    return None
