# SPDX-License-Identifier: Apache-2.0
"""
Learned rules as text
---------------------

Writes a policy file as a person would: MSRs that behave in the same way share a rule, adjacent ones
are ranges, and the others have their names. A comment says what was seen of each.
"""

import collections
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from kvmsr.msr import catalog
from kvmsr.policy import Action, Counter, Defaults, Op, Rule, Scope, Value
from kvmsr.policy.selector import merge
from kvmsr.text import counted, one_line
from kvmsr.trace.learn.fit import Fit
from kvmsr.trace.learn.seen import History, Stream

__all__ = ("Entry", "described", "named", "policy_text")

_WIDTH: Final = 100
_SHORTEST_RANGE: Final = 3
_MOST_VALUES: Final = 3
_MOST_SHOWN: Final = 3
_HEX: Final = ("value", "mask")


def named(index: int) -> str:
    """Return an MSR's name and number, or its number."""
    name = catalog().name(index)
    return f"{name} ({index:#x})" if name else f"MSR {index:#x}"


def described(rules: Iterable[Rule]) -> str:
    """Return rules in one line, without their MSRs."""
    return "; ".join(", ".join(_keys(rule)) for rule in rules)


def policy_text(
    name: str, about: Sequence[str], defaults: Defaults, groups: Sequence[Sequence["Entry"]]
) -> str:
    """
    Return the policy file.

    :param name: the policy's name; what no name has is left out.
    :param about: lines for its beginning.
    :param groups: the MSRs, those that share their rules together.
    """
    name = re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII).strip("-") or "learned"
    parts = [
        "\n".join(_comment(line) for line in about),
        f'[policy]\nname = "{name}"',
        f'[defaults]\nunknown = "{defaults.unknown}"\ninvalid = "{defaults.invalid}"',
    ]
    parts += [_group(entries) for entries in groups]
    return "\n\n".join(parts) + "\n"


class Entry:
    """
    An MSR in the policy file.

    :param history: what was seen of it.
    :param fit: its rules.
    :param remarks: further lines for its comment.
    :param who: says who came on a path, by its number.
    """

    def __init__(
        self,
        history: History,
        streams: Sequence[Stream],
        fit: Fit,
        remarks: Sequence[str] = (),
        who: Callable[[int], str] = str,
    ) -> None:
        self.index = history.index
        self.fit = fit
        self.key = described(fit.rules)
        self.lines = [f"{named(self.index)}: {_accesses(history, streams, who)}"]
        self.lines += [f"  {line}" for line in (*_extra(history, fit), *remarks)]


def _accesses(history: History, streams: Sequence[Stream], who: Callable[[int], str]) -> str:
    seen = [one for stream in streams for one in stream.seen]
    parts = []
    for op in Op:
        count = history.counts[op]
        if count:
            values = [one.value for one in seen if one.op == op and _has_value(one.outcome, op)]
            parts.append(counted(count, str(op)) + _values(values))
    if history.faults:
        parts.append(f"{history.faults:,} faulted")
    text = ", ".join(parts)
    if len(history.vcpus) > 1:
        text += f", on {len(history.vcpus)} vCPUs"
    by = collections.Counter[str]()
    for way, count in history.ways.items():
        by[who(way)] += count
    if by:
        shown = [
            one_line(one) + (f" ({count:,})" if len(by) > 1 else "")
            for one, count in by.most_common(_MOST_SHOWN)
        ]
        more = len(by) - len(shown)
        text += f", by {', '.join(shown)}{f' and {more} more' if more else ''}"
    return text


def _has_value(outcome: str, op: Op) -> bool:
    return op == Op.WRITE or outcome == "value"


def _values(values: list[int]) -> str:
    distinct = list(dict.fromkeys(values))
    if not distinct:
        return ""
    if len(distinct) > _MOST_VALUES:
        return f" ({distinct[0]:#x} … {distinct[-1]:#x})"
    return f" ({', '.join(f'{value:#x}' for value in distinct)})"


def _extra(history: History, fit: Fit) -> Iterable[str]:
    if fit.remark:
        yield fit.remark
    if history.passed:
        yield f"{counted(history.passed, 'access', 'accesses')} went to KVM, and still do"
    if history.left:
        yield f"{counted(history.left, 'access', 'accesses')} were counted only"
    if fit.missed:
        yield f"NOT REPRODUCED: {counted(fit.missed, 'outcome')}, which no simple rule explains"


def _group(entries: Sequence[Entry]) -> str:
    lines = [_comment(line) for entry in entries for line in entry.lines]
    msr = _msrs([entry.index for entry in entries])
    rules = ["\n".join(["[[rule]]", f"msr = {msr}", *_keys(r)]) for r in entries[0].fit.rules]
    return "\n".join([*lines, "\n\n".join(rules)])


def _comment(line: str) -> str:
    return f"# {one_line(line)}".rstrip()


def _msrs(indices: Sequence[int]) -> str:
    words: list[str] = []
    for first, last in merge((index, index) for index in indices):
        if last - first + 1 >= _SHORTEST_RANGE:
            words.append(f'"{first:#x}-{last:#x}"')
        else:
            words += [_one(index) for index in range(first, last + 1)]
    if len(words) == 1:
        return words[0]
    text = f"[{', '.join(words)}]"
    if len(text) <= _WIDTH - len("msr = "):
        return text
    return "\n".join(["[", *(f"    {word}," for word in words), "]"])


def _one(index: int) -> str:
    """Return an MSR's name, if policies take it for this MSR."""
    name = catalog().name(index)
    return f'"{name}"' if name and catalog().lookup(name).index == index else f"{index:#x}"


def _keys(rule: Rule) -> list[str]:
    keys = [f"{op} = {_action(act)}" for op in Op if (act := rule.action(op)) is not None]
    if rule.reset:
        keys.append(f"reset = {rule.reset:#x}")
    if rule.bits is not None:
        keys.append(f"bits = {_table(rule.bits.spec(), quoted=True)}")
    if rule.scope is not Scope.THREAD:
        keys.append(f'scope = "{rule.scope}"')
    if rule.when is not None:
        keys.append(f"when = {_table(rule.when.spec())}")
    return keys


def _action(action: Action) -> str:
    if isinstance(action, Value):
        return f"{{ value = {action.value:#x} }}"
    if isinstance(action, Counter):
        return f"{{ counter = {action.hz:_} }}"
    return f'"{action}"'


def _table(table: dict[str, Any], *, quoted: bool = False) -> str:
    mark = '"' if quoted else ""
    keys = [f"{mark}{key}{mark} = {_value(value, key)}" for key, value in table.items()]
    return f"{{ {', '.join(keys)} }}"


def _value(value: Any, key: str) -> str:
    if isinstance(value, list) and len(value) == 1:
        return _value(value[0], key)
    if isinstance(value, list):
        return f"[{', '.join(_value(one, key) for one in value)}]"
    if isinstance(value, int):
        return f"{value:#x}" if key in _HEX else str(value)
    return f'"{value}"'
