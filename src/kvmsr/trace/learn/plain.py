# SPDX-License-Identifier: Apache-2.0
"""
Rules without a register
------------------------

Each access is answered by itself: always in the same way, or depending on the value written or on
the number of the access.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Any, Final, NamedTuple

from kvmsr.policy import Op, Plain, Rule, Value
from kvmsr.trace.learn.seen import Seen

__all__ = ("Answer", "always", "answers", "by_number", "by_value", "conditional", "most", "rules")

Answer = Plain | Value

_MOST_CONDITIONS: Final = 4
_FEWEST_TIMES: Final = 2
_PLAIN: Final = {"done": Plain.IGNORE, "fault": Plain.FAULT, "stop": Plain.STOP}


class Choice(NamedTuple):
    """
    What happens to accesses in one direction.

    :ivar base: if no condition holds; None if there was no such access.
    :ivar exceptions: what happens under a condition, the first that holds.
    """

    base: Answer | None
    exceptions: tuple[tuple[Answer, dict[str, Any]], ...] = ()


def answers(seen: Sequence[Seen]) -> list[Answer]:
    """Return the action that gives each access its outcome. (Anybody's trace may have others.)"""
    return [
        Value(one.value)
        if one.op == Op.READ and one.outcome == "value"
        else _PLAIN.get(one.outcome, Plain.IGNORE)
        for one in seen
    ]


def always(seen: Sequence[Seen]) -> Choice | None:
    """Return the choice if all accesses had the same outcome."""
    found = set(answers(seen))
    return Choice(next(iter(found), None)) if len(found) < 2 else None


def most(seen: Sequence[Seen]) -> Choice:
    """Return the most frequent outcome."""
    found = Counter(answers(seen)).most_common(1)
    return Choice(found[0][0] if found else None)


def by_value(seen: Sequence[Seen]) -> Iterator[Choice]:
    """Yield the choice if the outcome of writes depends on the value, and few values differ."""
    found: dict[int, set[Answer]] = {}
    for one, answer in zip(seen, answers(seen), strict=True):
        found.setdefault(one.value, set()).add(answer)
    if not found or any(len(each) > 1 for each in found.values()):
        return
    single = {value: next(iter(each)) for value, each in found.items()}
    counts = Counter(single.values())
    base = max(counts, key=lambda answer: counts[answer])
    others = sorted((value, answer) for value, answer in single.items() if answer != base)
    if 0 < len(others) <= _MOST_CONDITIONS:
        yield Choice(base, tuple((answer, {"value": value}) for value, answer in others))


def by_number(seen: Sequence[Seen]) -> Iterator[Choice]:
    """Yield choices in which the outcome depends on the number of the access."""
    found = answers(seen)
    runs = [(answer, len(list(group))) for answer, group in groupby(found)]
    if 1 < len(runs) <= _MOST_CONDITIONS + 1:
        starts = [1]
        for _, count in runs:
            starts.append(starts[-1] + count)
        later = [
            (answer, {"after": first})
            for (answer, _), first in zip(runs[1:], starts[1:-1], strict=True)
        ]
        yield Choice(runs[0][0], tuple(reversed(later)))
    if len(set(found)) == 2:
        base, rare = (answer for answer, _ in Counter(found).most_common())
        at = [number for number, answer in enumerate(found, 1) if answer == rare]
        steps = {b - a for a, b in pairwise(at)}
        step = next(iter(steps), 0)
        if len(steps) == 1 and len(at) > _FEWEST_TIMES and at[-1] + step > len(found):
            first = {} if at[0] == step else {"after": at[0]}
            yield Choice(base, ((rare, {**first, "every": step}),))


def conditional(index: int, op: Op, choice: Choice) -> list[Rule]:
    """Return the rules for a choice's exceptions."""
    return [
        Rule(index, act, when=when) if op == Op.READ else Rule(index, None, act, when=when)
        for act, when in choice.exceptions
    ]


def rules(index: int, reads: Choice, writes: Choice) -> list[Rule]:
    """Return the rules for two choices."""
    read: Answer | None = reads.base
    if read == Value(0) and writes.base is Plain.IGNORE:
        read = Plain.IGNORE
    return [
        *conditional(index, Op.READ, reads),
        *conditional(index, Op.WRITE, writes),
        Rule(index, read, writes.base),
    ]
