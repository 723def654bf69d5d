# SPDX-License-Identifier: Apache-2.0
"""
The compiled table
------------------

A plan as the bytes from which C answers accesses. table.h describes their format.
"""

from collections import namedtuple
from collections.abc import Iterable, Sequence
from typing import Any, Final

from kvmsr.msr.as_host import never_unknown
from kvmsr.native import ffi, lib
from kvmsr.native.words import ACTIONS, LOGS, OPS, REASONS, SCOPES
from kvmsr.policy import Action, Counter, Log, Op, Plain, Reason, Rule, Value, When
from kvmsr.policy.plan import Plan

__all__ = ("Names", "TableRule", "compile_table", "table_rules")

_U64: Final = (1 << 64) - 1
_EXIT_REASONS: Final = {Reason.INVALID: 1, Reason.UNKNOWN: 2, Reason.FILTER: 4}
"""KVM_MSR_EXIT_REASON_*, of linux/kvm.h."""


def _fields_of(struct: str) -> Any:
    """Return a named tuple with the fields of a structure of the headers; they default to 0."""
    names = [name for name, _ in ffi.typeof(f"struct {struct}").fields] if ffi else []
    return namedtuple(struct, names, defaults=[0] * len(names))


_Rule, _Segment, _Bits = map(_fields_of, ("kvmsr_rule", "kvmsr_segment", "kvmsr_bits"))

TableRule = tuple[Rule | None, Op, str]
"""A rule of the table: the policy's rule, or None for a default; the direction; the name."""


class Names:
    """
    Numbers for the names of rules and defaults, as the summary shows them.

    C records numbers. A number keeps its meaning over all policies of a run. Number 0 is
    ``kernel``, for an access that goes to KVM without a rule.

    :param known: the names that already have numbers, from 0.
    """

    def __init__(self, known: Iterable[str] = ("kernel",)) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        for name in known:
            self.number(name)

    def known(self) -> list[str]:
        """Return the names in the order of their numbers."""
        return list(self._names)

    def number(self, name: str) -> int:
        """Return the number of *name*; a new name gets a new number."""
        number = self._numbers.setdefault(name, len(self._names))
        if number == len(self._names):
            self._names.append(name)
        return number

    def name(self, number: int) -> str:
        """Return the name with *number*, or "?" if there is none."""
        return self._names[number] if number < len(self._names) else "?"


def table_rules(plan: Plan) -> list[TableRule]:
    """Return the rules of *plan*'s table, in the order of their numbers."""
    rules: list[TableRule] = [
        (None, op, f"defaults.{name}") for name in ("unknown", "invalid", "on_error") for op in OPS
    ]
    rules += [
        (rule, op, rule.where)
        for rule in plan.policy.rules
        for op in OPS
        if rule.action(op) is not None
    ]
    return rules


def compile_table(plan: Plan, names: Names, *, serial: int = 0, logs: bool = False) -> bytes:
    """
    Return *plan* as C reads it.

    :param names: gives the rules' names their numbers.
    :param serial: number of the policy in this run.
    :param logs: whether log lines are written at all.
    """
    return _Writer(plan, names).write(serial, logs)


class _Writer:
    def __init__(self, plan: Plan, names: Names) -> None:
        self._plan = plan
        self._names = names
        self._vcpus: list[int] = []
        self._bits: dict[Any, int] = {}
        self._counters = 0
        self._data = bytearray(ffi.sizeof("struct kvmsr_table"))

    def write(self, serial: int, logs: bool) -> bytes:
        plan = self._plan
        given = table_rules(plan)
        rules = [self._rule(*one) for one in given]
        numbers: dict[Op, dict[int, int]] = {op: {} for op in OPS}
        for number, (rule, op, _) in enumerate(given):
            numbers[op][id(rule)] = number
        steps: list[int] = []
        places: dict[tuple[int, ...], int] = {}
        parts: list[tuple[list[int], list[tuple[int, int, bool]]]] = []
        for op, table in zip(OPS, (plan.reads, plan.writes), strict=True):
            segments = []
            number_of = numbers[op]
            ignore_msrs = plan.kernel.ignore_msrs
            for _, _, tries, known, _ in table.segments:
                tried = tuple([number_of[id(rule)] for rule in tries])
                place = places.get(tried)
                if place is None:
                    place = places[tried] = len(steps)
                    steps += tried
                swallowed = ignore_msrs and not known
                segments.append(_Segment(place, len(tried), known, swallowed))
            parts.append((table.starts, segments))
        head = ffi.new("struct kvmsr_table *")
        head.magic, head.version = lib.KVMSR_TABLE_MAGIC, lib.KVMSR_VERSION
        head.serial, head.logs, head.observes = serial, logs, bool(plan.policy.observe)
        topology = plan.policy.topology
        # The fields have 32 bits, and no VM has so many vCPUs that a larger number would differ.
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
        spans = [end for span in never_unknown() for end in span]
        head.never_unknown = self._array("uint32_t", spans)
        head.n_never_unknown = len(spans) // 2
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

    def _rule(self, rule: Rule | None, op: Op, name: str) -> Any:
        number = self._names.number(name)
        if rule is None:
            default = getattr(self._plan.policy.defaults, name.removeprefix("defaults."))
            log = None if name == "defaults.on_error" else Log.ONCE
            return _Rule(
                name=number, bits=lib.KVMSR_NONE, action=ACTIONS[default], log=_log(log, default)
            )
        action = rule.action(op)
        assert action is not None
        kind, value = self._action(action, rule)
        made = _Rule(
            value=value,
            name=number,
            bits=lib.KVMSR_NONE,
            action=kind,
            scope=SCOPES[rule.scope],
            log=_log(rule.log, action),
            keep=rule.keep,
        )
        if isinstance(action, Counter):
            made = made._replace(hz=action.hz)
        if rule.bits is not None:
            bits = _Bits(**rule.bits._asdict())
            made = made._replace(bits=self._bits.setdefault(bits, len(self._bits)))
        return made if rule.when is None else made._replace(**self._when(rule.when))

    def _action(self, action: Action, rule: Rule) -> tuple[int, int]:
        """Return the number of *action*, and its value: what reads return, or the reset value."""
        if isinstance(action, Value):
            return lib.KVMSR_ACT_VALUE, action.value
        if isinstance(action, Plain):
            return ACTIONS[action], rule.reset if action is Plain.SHADOW else 0
        if isinstance(action, Counter):
            return lib.KVMSR_ACT_COUNTER, rule.reset
        return lib.KVMSR_ACT_UPCALL, 0

    def _when(self, when: When) -> dict[str, int]:
        """Return the fields of a condition."""
        fields = {"when": 0, "every": when.every or 1}
        fields["after"] = when.after if when.after is not None else fields["every"]
        if when.vcpu is not None:
            wanted = [n for n in when.vcpu if n < 1 << 32]
            fields |= {"vcpus": len(self._vcpus), "n_vcpus": len(wanted)}
            fields["when"] |= lib.KVMSR_WHEN_VCPU
            self._vcpus += wanted
        if when.value is not None:
            mask = _U64 if when.mask is None else when.mask
            fields |= {"when_value": when.value, "when_mask": mask}
            fields["when"] |= lib.KVMSR_WHEN_VALUE
        if when.rip is not None:
            fields["rip_first"], fields["rip_last"] = when.rip
            fields["when"] |= lib.KVMSR_WHEN_RIP
        if when.caller is not None:
            fields["caller_first"], fields["caller_last"] = when.caller
            fields["when"] |= lib.KVMSR_WHEN_CALLER
        if when.counts:
            fields["counter"] = self._counters
            fields["when"] |= lib.KVMSR_WHEN_COUNT
            self._counters += 1
        if when.reason is not None:
            fields["reasons"] = sum(1 << REASONS[reason] for reason in when.reason)
            fields["when"] |= lib.KVMSR_WHEN_REASON
        return fields


def _log(log: Log | None, action: Action) -> int:
    """Return when C reports an access that *action* answered."""
    logs_itself = not isinstance(action, (Value, Plain, Counter))  # Python answers and logs it
    never_faults = isinstance(action, Value) or action is Plain.IGNORE
    if logs_itself or (log is None and never_faults):
        return LOGS[Log.NEVER]
    return LOGS[log]
