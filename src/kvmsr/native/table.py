# SPDX-License-Identifier: Apache-2.0
"""
The compiled table
------------------

A plan as the bytes that C answers accesses by; table.h says what they mean.
"""

from collections.abc import Sequence
from typing import Any, Final

from kvmsr.native import ffi, lib
from kvmsr.policy import Action, Counter, Log, Op, Plain, Reason, Rule, Scope, Value
from kvmsr.policy.plan import Plan

__all__ = ("Names", "TableRule", "compile_table", "table_rules")

_U64: Final = (1 << 64) - 1
_OPS: Final = (Op.READ, Op.WRITE)
_REASONS: Final = (Reason.UNKNOWN, Reason.INVALID, Reason.FILTER)
_SCOPES: Final = {scope: number for number, scope in enumerate(Scope)}
_PLAIN: Final = {
    Plain.IGNORE: 1, Plain.FAULT: 2, Plain.SHADOW: 3, Plain.KERNEL: 4, Plain.STOP: 5,
}  # fmt: skip
_VALUE, _UPCALL, _COUNTER = 0, 6, 7
_NEVER, _ONCE = 0, 2
_LOGS: Final = {Log.NEVER: 0, None: 1, Log.ONCE: 2, Log.CHANGE: 3, Log.ALWAYS: 4}
_WHEN_VCPU, _WHEN_VALUE, _WHEN_RIP, _WHEN_COUNT, _WHEN_REASON = 1, 2, 4, 8, 16
_EXIT_REASONS: Final = {Reason.INVALID: 1, Reason.UNKNOWN: 2, Reason.FILTER: 4}

TableRule = tuple[Rule | None, Op, str]
"""A rule of the table: the policy's rule, or None for a default; the direction; who says so."""


class Names:
    """
    Numbers for who decided: a guest's summary keeps them over all policies of a run.

    Number 0 is whoever passes an access to KVM without a rule.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self.number("kernel")

    def number(self, name: str) -> int:
        """Return the number of *name*, which gets one if it has none."""
        number = self._numbers.setdefault(name, len(self._names))
        if number == len(self._names):
            self._names.append(name)
        return number

    def name(self, number: int) -> str:
        """Return the name of *number*; "?" of one that was never given out."""
        return self._names[number] if number < len(self._names) else "?"


def table_rules(plan: Plan) -> list[TableRule]:
    """Return the rules of *plan*'s table by their numbers in it."""
    rules: list[TableRule] = [
        (None, op, f"defaults.{name}") for name in ("unknown", "invalid", "on_error") for op in _OPS
    ]
    rules += [
        (rule, op, rule.where)
        for rule in plan.policy.rules
        for op in _OPS
        if rule.action(op) is not None
    ]
    return rules


def compile_table(plan: Plan, names: Names, *, serial: int = 0, tells: bool = False) -> bytes:
    """
    Return *plan* as C reads it.

    :param serial: which policy of the run it is.
    :param tells: whether anybody takes what rules want told.
    """
    return _Writer(plan, names).write(serial, tells)


class _Writer:
    def __init__(self, plan: Plan, names: Names) -> None:
        self._plan = plan
        self._names = names
        self._vcpus: list[int] = []
        self._bits: dict[tuple[int, ...], int] = {}
        self._counters = 0
        self._data = bytearray(ffi.sizeof("struct kvmsr_table"))

    def write(self, serial: int, tells: bool) -> bytes:
        plan = self._plan
        given = table_rules(plan)
        rules = [self._rule(*one) for one in given]
        numbers: dict[Op, dict[int, int]] = {op: {} for op in _OPS}
        for number, (rule, op, _) in enumerate(given):
            numbers[op][id(rule)] = number
        steps: list[int] = []
        places: dict[tuple[int, ...], int] = {}
        parts: list[tuple[list[int], list[tuple[int, int, bool]]]] = []
        for op, table in zip(_OPS, (plan.reads, plan.writes), strict=True):
            segments = []
            number_of = numbers[op]
            ignore_msrs = plan.kernel.ignore_msrs
            for _, _, tries, known in table.segments:
                tried = tuple([number_of[id(rule)] for rule in tries])
                place = places.get(tried)
                if place is None:
                    place = places[tried] = len(steps)
                    steps += tried
                segments.append((place, len(tried), ignore_msrs and not known))
            parts.append((table.starts, segments))
        head = ffi.new("struct kvmsr_table *")
        head.magic, head.version = lib.KVMSR_TABLE_MAGIC, lib.KVMSR_VERSION
        head.serial, head.tells = serial, tells
        topology = plan.policy.topology
        # No VM has so many vCPUs that a larger number would make a difference.
        head.threads_per_core = min(topology.threads_per_core, 1 << 31)
        head.cores_per_package = min(topology.cores_per_package or 0, 1 << 31)
        for number, (starts, segments) in enumerate(parts):
            head.n_segments[number] = len(segments)
            head.firsts[number] = self._array("uint32_t", starts)
            head.segments[number] = self._array("struct kvmsr_segment", segments)
        head.steps, head.n_steps = self._array("uint32_t", steps), len(steps)
        head.rules, head.n_rules = self._array("struct kvmsr_rule", rules), len(rules)
        head.bits = self._array("struct kvmsr_bits", list(self._bits))
        head.n_bits = len(self._bits)
        head.vcpus, head.n_vcpus = self._array("uint32_t", self._vcpus), len(self._vcpus)
        head.counters = self._array("uint64_t", [0] * self._counters)
        head.n_counters = self._counters
        head.reasons = sum(_EXIT_REASONS[reason] for reason in plan.reasons)
        head.default_deny, head.n_ranges = plan.filter.default_deny, len(plan.filter.ranges)
        for number, span in enumerate(plan.filter.ranges):
            entry = head.ranges[number]
            entry.flags = span.reads | span.writes << 1
            entry.base, entry.count = span.base, span.count
            entry.bitmap = self._append(span.bitmap)
        head.size = len(self._data)
        self._data[: ffi.sizeof("struct kvmsr_table")] = ffi.buffer(head)
        return bytes(self._data)

    def _append(self, data: bytes) -> int:
        place = len(self._data)
        self._data += data
        self._data += bytes(-len(self._data) % 8)
        return place

    def _array(self, kind: str, items: Sequence[Any]) -> int:
        return self._append(bytes(ffi.buffer(ffi.new(f"{kind}[]", items))))

    def _rule(self, rule: Rule | None, op: Op, name: str) -> tuple[int, ...]:
        plan, number = self._plan, self._names.number(name)
        if rule is None:
            default = getattr(plan.policy.defaults, name.removeprefix("defaults."))
            log = _NEVER if name == "defaults.on_error" else _ONCE
            return (
                0, 0, 0, 0, 0, 0, 0, 0, number, lib.KVMSR_NONE, 0, 0, 0, _PLAIN[default],
                0, log, 0, 0,
            )  # fmt: skip
        action = rule.action(op)
        assert action is not None
        kind, value = self._action(action, rule)
        if kind == _VALUE and rule.when is None and rule.log is None:  # what most rules are
            return (
                value, 0, 0, 0, 0, 0, 0, 0, number, lib.KVMSR_NONE, 0, 0, 0, _VALUE,
                _SCOPES[rule.scope], _NEVER, 0, 0,
            )  # fmt: skip
        log = _LOGS[rule.log]
        if kind == _UPCALL or (
            rule.log is None and (kind == _VALUE or action is Plain.IGNORE)
        ):  # Python tells its own; and these do not fault
            log = _NEVER
        bits = lib.KVMSR_NONE
        if rule.bits is not None:
            bits = self._bits.setdefault(tuple(rule.bits), len(self._bits))
        hz = action.hz if isinstance(action, Counter) else 0
        when, asked = self._when(rule)
        (
            when_value, when_mask, rip_first, rip_last, after, every, vcpus, n_vcpus, counter,
            reasons,
        ) = asked  # fmt: skip
        return (
            value, hz, when_value, when_mask, rip_first, rip_last, after, every, number, bits,
            vcpus, n_vcpus, counter, kind, _SCOPES[rule.scope], log, when, reasons,
        )  # fmt: skip

    def _action(self, action: Action, rule: Rule) -> tuple[int, int]:
        if isinstance(action, Value):
            return _VALUE, action.value
        if isinstance(action, Plain):
            return _PLAIN[action], rule.reset if action is Plain.SHADOW else 0
        if isinstance(action, Counter):
            return _COUNTER, rule.reset
        return _UPCALL, 0

    def _when(self, rule: Rule) -> tuple[int, tuple[int, ...]]:
        when = rule.when
        if when is None:
            return 0, (0,) * 10
        flags = vcpus = counter = reasons = 0
        wanted: list[int] = []
        if when.vcpu is not None:
            flags |= _WHEN_VCPU
            vcpus, wanted = len(self._vcpus), [n for n in when.vcpu if n < 1 << 32]
            self._vcpus += wanted
        if when.value is not None:
            flags |= _WHEN_VALUE
        if when.rip is not None:
            flags |= _WHEN_RIP
        every = when.every or 1
        after = when.after if when.after is not None else every
        if when.counts:
            flags |= _WHEN_COUNT
            counter = self._counters
            self._counters += 1
        if when.reason is not None:
            flags |= _WHEN_REASON
            reasons = sum(1 << _REASONS.index(reason) for reason in when.reason)
        first, last = when.rip or (0, 0)
        mask = _U64 if when.mask is None else when.mask
        return flags, (
            when.value or 0, mask, first, last, after, every, vcpus, len(wanted), counter, reasons,
        )  # fmt: skip
