# SPDX-License-Identifier: Apache-2.0
"""
Lints
-----

What is valid in a policy but may not be what its owner means. Lint identifiers are stable.
"""

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from kvmsr.errors import PolicyError
from kvmsr.msr import X2APIC
from kvmsr.policy.access import Op, Reason
from kvmsr.policy.actions import Host, Plain
from kvmsr.policy.plan.facts import KernelFacts
from kvmsr.policy.plan.observe import differs
from kvmsr.policy.plan.segments import Table
from kvmsr.policy.policy import Policy
from kvmsr.policy.rule import NOWHERE, Log, Place, Rule

__all__ = ("MAX_SHADOWED", "Lint", "LintId", "lint_policy", "x2apic_errors")

_TSC_DEADLINE: Final = 0x6E0

MAX_SHADOWED: Final = 65_536
"""How many shadowed MSRs are kept for a VM; the same as kvmsr.dispatch.MAX_SHADOWS."""

# MSRs that identify the machine, or let a guest observe its neighbours (Intel SDM volume 4; AMD
# PPR: PPIN, energy counters; energy as a side channel: CVE-2020-8694, CVE-2020-12912).
_IDENTIFYING: Final = (
    (0x17, 0x17, "the platform ID"),
    (0x4E, 0x4F, "the protected processor inventory number"),
    (0x8B, 0x8B, "the microcode revision"),
    (0x19C, 0x19C, "the temperature"),
    (0x1A2, 0x1A2, "the temperature limit"),
    (0x1B1, 0x1B1, "the package's temperature"),
    (0x610, 0x611, "the package's power, a side channel"),
    (0x619, 0x619, "the memory's energy, a side channel"),
    (0x639, 0x639, "the cores' energy, a side channel"),
    (0x641, 0x641, "the graphics' energy, a side channel"),
    (0xC00102F0, 0xC00102F1, "the protected processor inventory number"),
    (0xC001029A, 0xC001029B, "energy, a side channel"),
)


class LintId(enum.StrEnum):
    """The identifiers of lints; docs/reference/policy.md explains each."""

    UNREACHABLE = "unreachable"
    X2APIC = "x2apic"
    IGNORE_MSRS = "ignore-msrs"
    HOST_IDENTITY = "host-identity"
    HOST_VALUE = "host-value"
    HOST_WRITE = "host-write"
    KERNEL_READ = "kernel-read"
    KERNEL_WRITE = "kernel-write"
    TSC_DEADLINE = "tsc-deadline"
    SHADOW_LIMIT = "shadow-limit"
    NOT_LOGGED = "not-logged"
    RELIES_ON_KERNEL = "relies-on-kernel"


@dataclass(frozen=True, slots=True)
class Lint:
    """
    Something that the owner of a policy should know.

    :ivar id: the kind of lint.
    :ivar message: what the problem is, and what to do about it.
    :ivar place: file, line and key; empty if it is about the policy as a whole.
    :ivar where: what messages call the rule, or "".
    """

    id: LintId
    message: str
    place: Place = NOWHERE
    where: str = ""

    def __str__(self) -> str:
        return f"{self.at}{self.message} [{self.id}]"

    @property
    def at(self) -> str:
        """Return the beginning of a line about it: file, line and key, as in errors."""
        file, line, key, _ = self.place
        if not file:
            return f"{self.where}: " if self.where else ""
        return f"{file}:{line}: {key}: "

    def as_dict(self) -> dict[str, Any]:
        """Return the lint in its JSON form."""
        return {"id": str(self.id), **self.place.as_dict(), "message": self.message}


def lint_policy(policy: Policy, kernel: KernelFacts, reads: Table, writes: Table) -> Iterator[Lint]:
    """Yield the lints of *policy*, which was cut to *reads* and *writes* for *kernel*."""
    yield from _unreachable(policy, reads, writes)
    for rule in policy.rules:
        if rule.msrs[0][0] <= X2APIC[1]:  # also TSC_DEADLINE
            yield from _x2apic(rule)
            yield from _tsc_deadline(rule)
        if isinstance(rule.read, Host) or isinstance(rule.write, Host):
            yield from _host(rule)
        if rule.write is Plain.SHADOW:
            yield from _shadow_limit(rule)
        if rule.log is not None and rule.log is not Log.NEVER:
            yield from _not_logged(rule)
        if kernel.ignore_msrs:
            yield from _swallowed(rule, kernel)
    yield from _asked_as_host(reads, Op.READ)
    yield from _asked_as_host(writes, Op.WRITE)
    if kernel.ignore_msrs:
        yield Lint(
            LintId.IGNORE_MSRS,
            "this host has kvm.ignore_msrs=1: the filter denies MSRs that no KVM handles, so that"
            " the policy decides; but MSRs that only some KVMs handle, and that have no rule, read"
            " 0 if this KVM does not handle them",
        )


def x2apic_errors(policy: Policy) -> Iterator[PolicyError]:
    """Yield an error for each rule that only selects x2APIC MSRs."""
    for rule in policy.rules:
        inside = all(X2APIC[0] <= first and last <= X2APIC[1] for first, last in rule.msrs)
        if inside and _takes_from_kvm(rule):
            file, line, key, _ = rule.place.at("msr")
            yield PolicyError(
                f"{'' if file else f'{rule.where}: '}the x2APIC MSRs 0x800-0x8ff cannot be taken"
                " from KVM, which never filters them; hide x2APIC from the guest instead, with"
                " --cpu-feature -x2apic",
                file=file,
                line=line,
                key=key,
            )


def _lint(rule: Rule, id_: LintId, message: str, key: str = "") -> Lint:
    return Lint(id_, message, rule.place.at(key) if key else rule.place, rule.where)


def _takes_from_kvm(rule: Rule) -> bool:
    return any(rule.asks_for(op) for op in Op)


def _touches(rule: Rule, first: int, last: int) -> bool:
    return any(a <= last and first <= b for a, b in rule.msrs)


def _unreachable(policy: Policy, reads: Table, writes: Table) -> Iterator[Lint]:
    """
    Find rules that never win.

    Overriding rules of an extended file is what extending is for, so only rules of the same file
    count as hiding a rule.
    """
    tried: dict[Op, set[int]] = {
        op: {id(rule) for segment in table.segments for rule in segment.rules}
        for op, table in ((Op.READ, reads), (Op.WRITE, writes))
    }
    before: list[Rule] = []
    for rule in policy.rules:
        if rule.never:
            yield _lint(rule, LintId.UNREACHABLE, f"never holds: {rule.never}", "when.cpl")
        for op in Op:
            if rule.action(op) is None or rule.never or id(rule) in tried[op]:
                continue
            if all(X2APIC[0] <= first and last <= X2APIC[1] for first, last in rule.msrs):
                continue
            own = [r for r in before if r.place.file == rule.place.file]
            hiding = _hiding(rule, op, own)
            if hiding:
                message = (
                    f"never reached: {hiding} already {'match' if ' ' in hiding else 'matches'}"
                )
                yield _lint(rule, LintId.UNREACHABLE, f"{message} all of its MSRs", op)
        before.append(rule)


def _hiding(rule: Rule, op: Op, before: Iterable[Rule]) -> str:
    """Return the rules of *before* that together match every MSR of *rule*, or ""."""
    left = list(rule.msrs)
    names: list[str] = []
    for other in before:
        if other.when is not None or other.action(op) is None:
            continue
        rest = [part for span in left for part in _without(span, other.msrs)]
        if rest != left:
            names.append(other.where)
        left = rest
    if any(not (X2APIC[0] <= first and last <= X2APIC[1]) for first, last in left):
        return ""
    return " and ".join(names)


def _without(span: tuple[int, int], others: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    first, last = span
    for a, b in others:
        if b < first or a > last:
            continue
        if first < a:
            yield first, a - 1
        first = b + 1
    if first <= last:
        yield first, last


def _x2apic(rule: Rule) -> Iterator[Lint]:
    if _takes_from_kvm(rule) and _touches(rule, *X2APIC):
        message = "has no effect on 0x800-0x8ff (x2APIC), which KVM never filters"
        yield _lint(rule, LintId.X2APIC, message, "msr")


def _tsc_deadline(rule: Rule) -> Iterator[Lint]:
    if rule.asks_for(Op.WRITE) and _touches(rule, _TSC_DEADLINE, _TSC_DEADLINE):
        yield _lint(
            rule,
            LintId.TSC_DEADLINE,
            f"on some hosts, KVM completes writes to {_TSC_DEADLINE:#x} (IA32_TSC_DEADLINE) before"
            " it looks at the filter; hide the timer mode with --cpu-feature -tsc-deadline",
            "write",
        )


def _host(rule: Rule) -> Iterator[Lint]:
    if isinstance(rule.read, Host):
        learnt = [what for first, last, what in _IDENTIFYING if _touches(rule, first, last)]
        if learnt:
            message = f"lets the guest identify or observe this host: {', '.join(learnt)}"
            yield _lint(rule, LintId.HOST_IDENTITY, message, "read")
        else:
            which = (
                "from whichever CPU the vCPU runs on: pin the vCPU, or name a CPU"
                if rule.read.cpu is None
                else f"from CPU {rule.read.cpu}, wherever the vCPU runs"
            )
            message = f"the guest reads the host's own value, {which}"
            yield _lint(rule, LintId.HOST_VALUE, message, "read")
    if isinstance(rule.write, Host):
        message = "the guest writes to the host's own register, which affects more than this VM"
        yield _lint(rule, LintId.HOST_WRITE, message, "write")


def _shadow_limit(rule: Rule) -> Iterator[Lint]:
    msrs = sum(last - first + 1 for first, last in rule.msrs)
    if msrs > MAX_SHADOWED:
        message = (
            f"shadows {msrs:,} MSRs, but only {MAX_SHADOWED:,} values are kept for a VM; further"
            " writes fault"
        )
        yield _lint(rule, LintId.SHADOW_LIMIT, message, "write")


def _not_logged(rule: Rule) -> Iterator[Lint]:
    kernels = [f"{op}s" for op in Op if rule.action(op) is Plain.KERNEL]
    if kernels:
        message = (
            f"{' and '.join(kernels)} are left to KVM, which completes them out of sight: log has"
            " no effect on them"
        )
        yield _lint(rule, LintId.NOT_LOGGED, message, "log")


def _swallowed(rule: Rule, kernel: KernelFacts) -> Iterator[Lint]:
    """Find rules that wait for KVM not to know an MSR, which kvm.ignore_msrs prevents."""
    if not any(_touches(rule, one.first, one.last) for one in kernel.handled):
        return
    waits = rule.when is not None and rule.when.reason == (Reason.UNKNOWN,)
    if waits or Plain.KERNEL in (rule.read, rule.write):
        yield _lint(
            rule,
            LintId.IGNORE_MSRS,
            "this host has kvm.ignore_msrs=1: if this KVM does not know the MSR, reads return 0 and"
            f" {'this rule' if waits else 'defaults.unknown'} never applies",
        )


def _asked_as_host(table: Table, op: Op) -> Iterator[Lint]:
    """Find accesses that one rule takes from KVM, and that then go to KVM after all."""
    seen: set[tuple[int, str]] = set()
    for segment in table.segments:
        if not segment.known or not any(rule.asks_for(op) for rule in segment.rules):
            continue
        asking = next(rule for rule in segment.rules if rule.asks_for(op))
        last = segment.rules[-1]
        handed = next((r for r in segment.rules if r.action(op) is Plain.KERNEL), None)
        subject = handed or (asking if last.when is not None else None)
        different = "" if subject is None else differs(op, segment.first, segment.last)
        if subject is None or not different:
            continue
        if (id(subject), different) in seen:
            continue
        seen.add((id(subject), different))
        name = asking.name_of(segment.first) or f"{segment.first:#x}"
        does = "reads" if op is Op.READ else "writes"
        ioctl = "KVM_GET_MSRS" if op is Op.READ else "KVM_SET_MSRS"
        yield _lint(
            subject,
            LintId.KERNEL_READ if op is Op.READ else LintId.KERNEL_WRITE,
            f"if the condition of {asking.where} fails, KVM {does} {name} on behalf of the host"
            f" ({ioctl}): {different}",
            op,
        )
