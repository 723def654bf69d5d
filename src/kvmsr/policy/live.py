# SPDX-License-Identifier: Apache-2.0
"""
Live changes
------------

Changes to single MSRs while a guest runs: rules in front of those of the policy that is in force.
"""

from dataclasses import replace
from typing import Any, Final

from kvmsr.policy.access import Op, Reason
from kvmsr.policy.actions import Action, ActionSpec, Counter, Model, Plain, Value, to_action
from kvmsr.policy.policy import Policy
from kvmsr.policy.rule import Place, Rule
from kvmsr.policy.topology import Scope
from kvmsr.policy.when import When

__all__ = ("changed", "given", "live_rules", "without_live")

_LIVE: Final = Place(key="live")
_REASONS: Final = (Reason.UNKNOWN, Reason.INVALID)


def live_rules(policy: Policy) -> tuple[Rule, ...]:
    """Return the rules of *policy* that :func:`changed` has added."""
    return tuple(rule for rule in policy.rules if rule.place == _LIVE)


def without_live(policy: Policy) -> Policy:
    """Return *policy* as it was before all changes."""
    return replace(policy, rules=tuple(rule for rule in policy.rules if rule.place != _LIVE))


def changed(
    policy: Policy,
    index: int,
    *,
    read: ActionSpec | None = None,
    write: ActionSpec | None = None,
    reset: int | None = None,
    log: str | None = None,
) -> Policy:
    """
    Return *policy* with other actions for one MSR, in place of earlier changes to that MSR.

    :param read: the action for reads; None for what the policy says without changes.
    :param write: the action for writes, likewise.
    :param reset: the initial value, for ``shadow``.
    :param log: which accesses are logged; None for what the policy says. If an action is None, too,
        the policy's own rules for this MSR are repeated with this setting.
    :raises PolicyError: if these do not fit together.
    """
    base = without_live(policy)
    given = {Op.READ: read, Op.WRITE: write}
    added = []
    if read is not None or write is not None:
        added.append(_rule(index, read, write, reset=reset, log=log))
    if log is not None:
        added += [rule for op in Op if given[op] is None for rule in _logged(base, index, op, log)]
    others = [rule for rule in live_rules(policy) if rule.msrs != ((index, index),)]
    own = sorted([*others, *added], key=lambda rule: rule.msrs)
    return replace(base, rules=(*own, *base.rules))


def given(policy: Policy, index: int) -> dict[str, Any]:
    """Return how an MSR was changed: what :func:`changed` was called with. Empty if it was not."""
    rules = [rule for rule in live_rules(policy) if rule.msrs == ((index, index),)]
    if not rules:
        return {}
    base, log = without_live(policy), rules[0].log
    found: dict[str, Any] = {} if log is None else {"log": str(log)}
    for op in Op:
        own = [rule for rule in rules if rule.action(op) is not None]
        if own and (log is None or own != _logged(base, index, op, str(log))):
            action = own[0].action(op)
            found[str(op)] = action.value if isinstance(action, Value) else str(action)
            if own[0].reset:
                found["reset"] = own[0].reset
    return found


def _rule(
    index: int,
    read: ActionSpec | None,
    write: ActionSpec | None,
    *,
    reset: int | None = None,
    **more: Any,
) -> Rule:
    actions = [
        to_action(spec, op) for spec, op in zip((read, write), Op, strict=True) if spec is not None
    ]
    if not any(action is Plain.SHADOW or isinstance(action, Counter) for action in actions):
        reset = None
    where = f"live {index:#x}"
    return Rule(index, read, write, reset=reset, where=where, place=_LIVE, **more)


def _logged(base: Policy, index: int, op: Op, log: str) -> list[Rule]:
    """Return the rules of *base* that an access may come to, with another log setting."""
    found = []
    for rule in base.rules:
        action = rule.action(op)
        if action is None or rule.never or not _has(rule, index):
            continue
        found.append(_repeated(rule, index, op, action, log))
        if rule.when is None:
            return found
    left = [Plain.KERNEL] if found else []  # for what has none of these reasons
    for reason in _REASONS:
        default = base.defaults.unknown if reason is Reason.UNKNOWN else base.defaults.invalid
        found.append(_rule(index, *_only(op, default), when=When(reason=reason), log=log))
    return [*found, *(_rule(index, *_only(op, action), log=log) for action in left)]


def _only(op: Op, action: Action) -> tuple[Action | None, Action | None]:
    """Return *action* as the one for reads or for writes."""
    return (action, None) if op == Op.READ else (None, action)


def _has(rule: Rule, index: int) -> bool:
    return any(first <= index <= last for first, last in rule.msrs)


def _repeated(rule: Rule, index: int, op: Op, action: Action, log: str) -> Rule:
    """Return *rule* for one MSR and direction, without the keys of its other action."""
    more: dict[str, Any] = {"when": rule.when, "log": log}
    if action is Plain.SHADOW or isinstance(action, Counter):
        more |= {
            "reset": rule.reset,
            "scope": rule.scope if rule.scope is not Scope.THREAD else None,
        }
    if action is Plain.SHADOW:
        more["bits"] = rule.bits
    if action is Plain.SHADOW or isinstance(action, Counter | Model):
        more["keep"] = rule.keep
    return _rule(index, *_only(op, action), **more)
