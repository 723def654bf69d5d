# SPDX-License-Identifier: Apache-2.0
"""
Rules for one MSR
-----------------

Find the simplest rules that give the accesses to an MSR the outcomes that were recorded. Candidates
are tried on what was recorded, from the most natural one to the most contrived. The first that
gives every outcome is taken, and if there is none, the one with the fewest misses.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Final, NamedTuple

from kvmsr.msr import X2APIC
from kvmsr.policy import Counter, Op, Plain, Reason, Rule, When
from kvmsr.trace.learn import plain
from kvmsr.trace.learn.check import misses
from kvmsr.trace.learn.counter import estimates
from kvmsr.trace.learn.plain import Answer, Choice
from kvmsr.trace.learn.seen import Seen, Stream
from kvmsr.trace.learn.shadow import Shadow, has_read_back, infer, plain_reset, with_lock

__all__ = ("Fit", "fit")

_MAX_GROUPS: Final = 16
"""If vCPUs differ in more ways, rules for each would not be worth reading."""
_SHADOW: Final = Plain.SHADOW
_GIVEN_UP: Final = (Reason.UNKNOWN, Reason.INVALID)


class Fit(NamedTuple):
    """
    Rules for one MSR.

    :ivar rules: the rules, in order.
    :ivar missed: number of accesses that they give another outcome.
    :ivar off: how far off a counter's values are.
    :ivar remark: what the reader should know about them, or "".
    """

    rules: tuple[Rule, ...]
    missed: int
    off: int = 0
    remark: str = ""

    @property
    def counts(self) -> bool:
        """Whether reads depend on the time."""
        return any(isinstance(rule.read, Counter) for rule in self.rules)


class _Way(NamedTuple):
    rules: list[Rule]
    off: int = 0
    remark: str = ""


def fit(index: int, streams: Sequence[Stream], *, exact: bool) -> Fit:
    """
    Return the rules that fit best.

    :param exact: whether every access is there, so that they can be numbered.
    """
    when = {op: _reasons(index, op, streams) for op in Op}
    best: Fit | None = None
    for way in _Ways(index, streams, when, exact=exact).all():
        rules = [part for rule in way.rules for part in _under(rule, when)]
        missed = misses(rules, streams, way.off)
        found = Fit(tuple(rules), missed, way.off, way.remark)
        if not missed:
            return found
        if best is None or missed <= best.missed:  # the last one is the most frequent outcome
            best = found
    assert best is not None
    return best


def _reasons(index: int, op: Op, streams: Sequence[Stream]) -> tuple[Reason, ...]:
    """
    Return the reasons that a rule has to name; none if it takes all accesses.

    A rule that names no reason also takes the accesses that KVM would complete. They were not
    recorded, so KVM has to go on completing them; it keeps x2APIC's to itself in any case.
    """
    found = {one.reason for stream in streams for one in stream.seen if one.op == op}
    if X2APIC[0] <= index <= X2APIC[1]:
        return tuple(reason for reason in _GIVEN_UP if reason in found) or _GIVEN_UP
    if Reason.FILTER in found or Reason.INVALID not in found:
        return ()
    return tuple(reason for reason in Reason if reason in found)


def _under(rule: Rule, when: dict[Op, tuple[Reason, ...]]) -> Iterator[Rule]:
    """Yield *rule* with conditions on the reason; two rules if those for reads are different."""
    needed = {op: when[op] for op in Op if rule.action(op) is not None}
    if len(set(needed.values())) == 1:
        yield _also(rule, reason=next(iter(needed.values())))
    else:
        yield replace(_also(rule, reason=needed[Op.READ]), write=None)
        yield replace(_also(rule, reason=needed[Op.WRITE]), read=None)


def _also(rule: Rule, **more: Any) -> Rule:
    """Return *rule* with a further condition."""
    more = {key: value for key, value in more.items() if value}
    if not more:
        return rule
    spec = {} if rule.when is None else rule.when.spec()
    return replace(rule, when=When(**spec, **more))


class _Ways:
    """The candidates for one MSR."""

    def __init__(
        self,
        index: int,
        streams: Sequence[Stream],
        when: dict[Op, tuple[Reason, ...]],
        *,
        exact: bool,
    ) -> None:
        self._index = index
        self._when = when
        self._streams = streams
        self._exact = exact
        self._by_op: dict[Op, list[Seen]] = {
            op: [one for stream in streams for one in stream.seen if one.op == op] for op in Op
        }
        self._vcpus = sorted({one.vcpu for stream in streams for one in stream.seen})

    def all(self) -> Iterator[_Way]:
        """Yield all candidates."""
        yield from self.natural()
        yield from self._by_vcpu(numbers=False)
        yield from self.by_number()
        yield from self._by_vcpu(numbers=True)
        if len({one.value for one in self._by_op[Op.READ] if one.outcome == "value"}) > 1:
            for shadow in infer(self._streams, shared=False):
                yield self._shadow(shadow, shared=False)
        yield self._plain(*(plain.most(self._by_op[op]) for op in Op))

    def natural(self) -> Iterator[_Way]:
        reads, writes = self._by_op[Op.READ], self._by_op[Op.WRITE]
        answers: set[Answer] = set(plain.answers(writes))
        shadowed = Plain.IGNORE in answers
        scopes = (False, True) if len(self._vcpus) > 1 else (False,)
        if has_read_back(self._streams) and Plain.FAULT not in answers:
            for shared in scopes:
                reset = plain_reset(self._streams, shared=shared)
                if reset is not None:
                    yield self._shadow(Shadow(reset, None), shared=shared)
        read, write = plain.always(reads), plain.always(writes)
        if read and write:
            yield self._plain(read, write)
        if shadowed:
            yield from self._shadows(scopes)
        for choice in plain.by_value(writes):
            if read:
                yield self._plain(read, choice)
            else:
                reset = plain_reset(self._streams, shared=False)
                way = self._shadow(Shadow(reset or 0, None), shared=False)
                yield _Way([*plain.conditional(self._index, Op.WRITE, choice), *way.rules])
        if not read:
            yield from self._counters(write)

    def _shadows(self, scopes: tuple[bool, ...]) -> Iterator[_Way]:
        for shared in scopes:
            for shadow in chain(
                infer(self._streams, shared=shared),
                with_lock(self._index, self._streams, shared=shared),
            ):
                yield self._shadow(shadow, shared=shared)

    def _counters(self, write: Choice | None) -> Iterator[_Way]:
        for found in estimates(self._streams):
            counter = Counter(found.hz)
            on_write = counter if found.is_set else (write or Choice(Plain.IGNORE)).base
            rule = Rule(self._index, counter, on_write, reset=found.reset)
            yield _Way([rule], found.off, found.remark())

    def by_number(self) -> Iterator[_Way]:
        """Yield rules that depend on the number of the access."""
        reads, writes = self._by_op[Op.READ], self._by_op[Op.WRITE]
        if self._exact:
            for read in (plain.always(reads), *plain.by_number(reads)):
                for write in (plain.always(writes), *plain.by_number(writes)):
                    if read and write:
                        yield self._plain(read, write)

    def _by_vcpu(self, *, numbers: bool) -> Iterator[_Way]:
        """
        Yield rules for vCPUs that differ.

        :param numbers: whether these may depend on the number of the access.
        """
        by_vcpu = sorted(map(self._like, self._vcpus), key=lambda ways: -ways.count)
        groups: list[tuple[_Way, list[int]]] = []
        for ways in by_vcpu if len(by_vcpu) > 1 else ():
            vcpu = ways._vcpus[0]
            members = next((members for way, members in groups if ways.has(way)), None)
            if members is not None:  # it did less than another vCPU, but nothing else
                members.append(vcpu)
                continue
            way = ways.first(numbers=numbers)
            if way is None or len(groups) > _MAX_GROUPS:
                return
            groups.append((way, [vcpu]))
        if groups:
            *others, base = sorted(groups, key=lambda group: len(group[1]))
            rules = [_also(rule, vcpu=sorted(on)) for way, on in others for rule in way.rules]
            worst = max((way for way, _ in groups), key=lambda way: way.off)
            yield _Way([*rules, *base[0].rules], worst.off, worst.remark)

    @property
    def count(self) -> int:
        """Return the number of accesses."""
        return sum(map(len, self._by_op.values()))

    def _like(self, vcpu: int) -> "_Ways":
        """Return the candidates for the accesses of one vCPU."""
        streams = [
            Stream(stream.trace, [one for one in stream.seen if one.vcpu == vcpu])
            for stream in self._streams
        ]
        return _Ways(self._index, streams, self._when, exact=self._exact)

    def has(self, way: _Way) -> bool:
        """Return whether a candidate gives every outcome."""
        rules = [part for rule in way.rules for part in _under(rule, self._when)]
        return not misses(rules, self._streams, way.off)

    def first(self, *, numbers: bool) -> _Way | None:
        """Return the first candidate for one vCPU that gives every outcome."""
        ways = chain(self.natural(), self.by_number()) if numbers else self.natural()
        return next(filter(self.has, ways), None)

    def _plain(self, read: Choice, write: Choice) -> _Way:
        return _Way(plain.rules(self._index, read, write))

    def _shadow(self, shadow: Shadow, *, shared: bool) -> _Way:
        """Return a shadow; its rule has an action for a direction only if it was seen."""
        given = {str(op): _SHADOW for op in Op if self._by_op[op]}
        scope = "vm" if shared else "thread"
        rule = Rule(self._index, **given, reset=shadow.reset, bits=shadow.bits, scope=scope)  # type: ignore[arg-type]
        return _Way([rule])
