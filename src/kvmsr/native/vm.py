# SPDX-License-Identifier: Apache-2.0
"""
The native core's VM
--------------------

Python's part for a VM whose accesses C answers: answer what the table leaves to Python, log what
the rules want logged, and save and restore the registers. Outcomes and state are the same as those
of a :class:`~kvmsr.dispatch.Dispatcher` alone.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, Final

from kvmsr.dispatch import Dispatcher, Outcome, Verdict
from kvmsr.dispatch.state import MAX_SHADOWS
from kvmsr.errors import PolicyError
from kvmsr.native import lib
from kvmsr.native.block import Block
from kvmsr.native.table import Names, TableRule, table_rules
from kvmsr.native.words import VERDICTS, by_number
from kvmsr.policy import Access, Host, Model, Op, Plain, Python, Scope

__all__ = ("NativeVm", "outcome_of")

_VERDICTS: Final = by_number(VERDICTS)
_VALUE, _STOP = Verdict.VALUE, VERDICTS[Verdict.STOP]
_IS_VALUE: Final = VERDICTS[Verdict.VALUE]  # hashing a member takes longer than the rest
_THREAD, _SCOPES = 0, len(Scope)
_MADE: Final = 1 << 63
_ASK_PYTHON: Final = (Host, Model, Python)
_U64: Final = (1 << 64) - 1
_LONGEST: Final = 1 << 62
_MAX_ASKED: Final = 4096


def outcome_of(raw: Any, names: Names) -> Outcome:
    """Return a ``struct kvmsr_outcome`` as an Outcome."""
    return Outcome(_VERDICTS[raw.verdict], names.name(raw.name), raw.value)


class NativeVm:
    """
    The Python side of one VM under one policy.

    :param dispatcher: has the policy's plan, handlers and models.
    :param block: has the VM's record, with its shadows.
    :param names: the numbers of the rules' names.
    :param vm: the VM's number in the block.
    :ivar number: the VM's number in the block.
    :ivar rules: the rules of the table, in the order of their numbers.
    :ivar serial: tells apart the VMs that have had this number one after the other.
    """

    def __init__(self, dispatcher: Dispatcher, block: Block, names: Names, *, vm: int = 0) -> None:
        self.dispatcher = dispatcher
        self.block = block
        self.names = names
        self.rules: list[TableRule] = table_rules(dispatcher.plan)
        self.number = vm
        self._record = block.vm(vm)
        self.serial = int(self._record.serial)
        self._resets = int(self._record.resets)
        self._following = threading.Lock()
        self._asked: set[tuple[int, Op, int, bool]] = set()  # what was found to be so
        self._acts: list[Callable[[Access], Outcome] | None] = [
            dispatcher.act(rule, op) if rule and isinstance(rule.action(op), _ASK_PYTHON) else None
            for rule, op, _ in self.rules
        ]

    def is_current(self) -> bool:
        """Return whether the VM still has its number: another one may have got it."""
        now = int(self._record.serial)
        return now == self.serial or max(now, self.serial) == 1  # 0 is before there is a VM

    def asks(self, access: Access, rule: int, *, stop: bool) -> bool:
        """
        Return whether an access may ask Python for the sake of a rule.

        A VMM may claim anything. But the rule must exist, cover the MSR in this direction, and have
        an action that needs Python.

        :param rule: the rule's number, any number.
        :param stop: whether it is to stop the run, instead of to answer.
        """
        key = rule, access.op, access.index, stop
        if key in self._asked:
            return True
        found = self._may_ask(access, rule, stop=stop)
        if found and len(self._asked) < _MAX_ASKED:
            self._asked.add(key)
        return found

    def _may_ask(self, access: Access, rule: int, *, stop: bool) -> bool:
        if rule >= len(self.rules):
            return False
        given, op, _ = self.rules[rule]
        if op is not access.op:
            return False
        if given is None:
            return stop and self._default_stops(rule)
        if not any(given is one for one in self.dispatcher.plan.segment(op, access.index).rules):
            return False
        return (given.action(op) is Plain.STOP) if stop else self._acts[rule] is not None

    def answer(self, access: Access, raw: Any) -> Outcome:
        """
        Answer an access that C leaves to Python.

        :param raw: the outcome that asks, a ``struct kvmsr_outcome``; the answer is put into it.
        """
        number = raw.rule
        name = self.rules[number][2]
        if raw.verdict == _STOP:
            return Outcome(Verdict.STOP, name)
        act = self._acts[number]
        assert act is not None
        outcome: Outcome = act(access)
        verdict, rule, value = outcome
        if verdict is _VALUE:
            raw.verdict, raw.value = _IS_VALUE, value
        else:
            raw.verdict = VERDICTS[verdict]
        if rule is not name:  # as for a handler that failed: defaults.on_error
            raw.name = self.names.number(rule)
        return outcome

    def _default_stops(self, rule: int) -> bool:
        """Return whether *rule* is the number of a default that stops the run."""
        name = self.rules[rule][2].removeprefix("defaults.")
        return getattr(self.dispatcher.plan.policy.defaults, name) is Plain.STOP

    def follow_resets(self) -> None:
        """Reset the models if the guest has been reset. C has already reset the shadows."""
        resets = self._record.resets
        if resets == self._resets:
            return
        with self._following:
            if resets != self._resets:
                self._resets = resets
                self.dispatcher.models.reset(self._kept())

    def reset(self) -> None:
        """Reset all registers and models."""
        lib.kvmsr_reset(self._record, 1)
        with self._following:
            self._resets = self._record.resets
            self.dispatcher.models.reset()

    def _kept(self) -> set[Any]:
        """Return the keys of the models that rules keep when the guest resets."""
        actions = [
            action for rule in self.dispatcher.plan.policy.rules if rule.keep
            for action in (rule.read, rule.write)
        ]  # fmt: skip
        return {action.key for action in actions if isinstance(action, Model)}

    def log(self, access: Access, raw: Any) -> None:
        """Log an access that C has answered with *raw*, if its rule wants that."""
        rule = self.rules[raw.rule][0] if raw.rule < len(self.rules) else None
        self.dispatcher.log(rule, access, outcome_of(raw, self.names))

    # State, in the same form as the dispatcher's

    def state(self) -> dict[str, Any]:
        """
        Return everything that must survive a snapshot, as :meth:`Dispatcher.state` does.

        No vCPU may run during the call.
        """
        values, written = [], []
        self.follow_resets()
        for shadow in self._shadows():
            if not shadow.state & lib.KVMSR_HAS:
                continue
            name = [_holder(shadow.key), shadow.key & 0xFFFF_FFFF]
            values.append([*name, shadow.value])
            if shadow.state & lib.KVMSR_WRITTEN:
                written.append(name)
        counters = self._counters()
        return {
            "shadows": {"values": sorted(values), "written": sorted(written)},
            "models": self.dispatcher.models.state(),
            "conditions": {name: counters[number] for number, name in self._counted()},
            "elapsed": self._elapsed(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """
        Restore a state returned by :meth:`state`, or by a dispatcher.

        No vCPU may run during the call.

        :raises PolicyError: if it was saved under another policy.
        """
        counted = self._counted()
        if set(state["conditions"]) != {name for _, name in counted}:
            raise PolicyError("this state was saved under another policy: its conditions differ")
        self.dispatcher.models.restore(state["models"])
        lib.kvmsr_reset(self._record, 1)
        self._resets = self._record.resets
        counters = self._counters()
        for number, name in counted:
            counters[number] = state["conditions"][name]
        # This may be before the host booted, and wrap around; C wraps in the same way.
        self._record.begun_ns = lib.kvmsr_now_ns() - state["elapsed"] & _U64
        written = {tuple(key) for key in state["shadows"]["written"]}
        for holder, index, value in state["shadows"]["values"]:
            how = lib.KVMSR_WRITTEN if (holder, index) in written else 0
            if any(rule.keep for rule in self.dispatcher.plan.segment(Op.WRITE, index).rules):
                how |= lib.KVMSR_KEEP
            lib.kvmsr_shadow_put(self._record, _key(holder, index), value, how)

    def _elapsed(self) -> int:
        begun = self._record.begun_ns
        elapsed: int = lib.kvmsr_now_ns() - begun & _U64
        return elapsed if begun and elapsed < _LONGEST else 0

    @property
    def shadows(self) -> int:
        """Return the number of shadows that are kept."""
        return min(int(self._record.n_shadows), MAX_SHADOWS)

    @property
    def refused(self) -> int:
        """Return the number of writes that found no room."""
        return int(self._record.refused)

    def _shadows(self) -> Any:
        if not self._record.n_shadows:
            return ()
        return (shadow for shadow in self._record.shadows if shadow.key)

    def _counters(self) -> Any:
        return lib.kvmsr_counters(self._record, self.block.tables.active)

    def _counted(self) -> list[tuple[int, str]]:
        """Return the counter's number and the name of each rule that counts its matches."""
        places = {id(rule): n for n, rule in enumerate(self.dispatcher.plan.policy.rules)}
        counting = [
            f"{places[id(rule)]}.{op}" for rule, op, _ in self.rules
            if rule is not None and rule.when is not None and rule.when.counts
        ]  # fmt: skip
        return list(enumerate(counting))


def _holder(key: int) -> int:
    """Return the holder in *key*, numbered as in :class:`~kvmsr.dispatch.state.Shadows`."""
    scope, unit = key >> 52 & 3, key >> 32 & 0xFFFFF
    return unit if scope == _THREAD else -_SCOPES * unit - scope


def _key(holder: int, index: int) -> int:
    scope, unit = (_THREAD, holder) if holder >= 0 else (-holder % _SCOPES, -holder // _SCOPES)
    return _MADE | scope << 52 | unit << 32 | index
