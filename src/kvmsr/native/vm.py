# SPDX-License-Identifier: Apache-2.0
"""
The native core's VM
--------------------

Python's part for a VM whose accesses C answers: answer what the table leaves to Python, log what
the rules want logged, and save and restore the registers. Outcomes and state are the same as those
of a :class:`~kvmsr.dispatch.Dispatcher` alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from kvmsr.dispatch import Dispatcher, Outcome, Verdict
from kvmsr.errors import PolicyError
from kvmsr.native import ffi, lib
from kvmsr.native.block import Block
from kvmsr.native.table import Names, TableRule, table_rules
from kvmsr.native.words import VERDICTS, by_number
from kvmsr.policy import Access, Scope

__all__ = ("NativeVm", "outcome_of")

_VERDICTS: Final = by_number(VERDICTS)
_VALUE, _STOP = Verdict.VALUE, VERDICTS[Verdict.STOP]
_IS_VALUE: Final = VERDICTS[Verdict.VALUE]  # hashing a member takes longer than the rest
_THREAD, _SCOPES = 0, len(Scope)
_HAS, _WRITTEN = 2, 4
_MADE: Final = 1 << 63
_U64: Final = (1 << 64) - 1


def outcome_of(raw: Any, names: Names) -> Outcome:
    """Return a ``struct kvmsr_outcome`` as an Outcome."""
    return Outcome(_VERDICTS[raw.verdict], names.name(raw.name), raw.value)


class NativeVm:
    """
    The Python side of one VM under one policy.

    :param dispatcher: has the policy's plan, handlers and models.
    :param block: has the table and the shadows.
    :param names: the numbers of the rules' names.
    :param vm: the VM's number in the block, 0 to 511.
    :ivar number: the VM's number in the block.
    :ivar rules: the rules of the table, in the order of their numbers.
    """

    def __init__(self, dispatcher: Dispatcher, block: Block, names: Names, *, vm: int = 0) -> None:
        self.dispatcher = dispatcher
        self.block = block
        self.names = names
        self.rules: list[TableRule] = table_rules(dispatcher.plan)
        self.number = vm
        self._acts: list[Callable[[Access], Outcome] | None] = [
            None if rule is None else dispatcher.act(rule, op) for rule, op, _ in self.rules
        ]

    def asks_python(self, rule: int) -> bool:
        """Return whether *rule*, which may be any number, is the number of a rule of the policy."""
        return rule < len(self._acts) and self._acts[rule] is not None

    def answer(self, access: Access, raw: Any) -> Outcome:
        """
        Answer an access that C leaves to Python.

        :param raw: the outcome that asks, a ``struct kvmsr_outcome``; the answer is put into it.
        """
        if raw.verdict == _STOP:
            return Outcome(Verdict.STOP, self.names.name(raw.name))
        number = raw.rule
        act = self._acts[number]
        assert act is not None
        outcome: Outcome = act(access)
        verdict, rule, value = outcome
        if verdict is _VALUE:
            raw.verdict, raw.value = _IS_VALUE, value
        else:
            raw.verdict = VERDICTS[verdict]
        if rule is not self.rules[number][2]:  # as for a handler that failed: defaults.on_error
            raw.name = self.names.number(rule)
        return outcome

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
        raw = self.block.raw
        for shadow in self._shadows():
            key = shadow.key
            if key >> 54 & 0x1FF != self.number or not shadow.state & _HAS:
                continue
            name = [_holder(key), key & 0xFFFF_FFFF]
            values.append([*name, shadow.value])
            if shadow.state & _WRITTEN:
                written.append(name)
        counters = self._counters(raw)
        return {
            "shadows": {"values": sorted(values), "written": sorted(written)},
            "models": self.dispatcher.models.state(),
            "conditions": {name: counters[number] for number, name in self._counted()},
            "elapsed": lib.kvmsr_now_ns() - raw.begun_ns & _U64,
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
        counters = self._counters(self.block.raw)
        for number, name in counted:
            counters[number] = state["conditions"][name]
        # This may be before the host booted, and wrap around; C wraps in the same way.
        self.block.raw.begun_ns = lib.kvmsr_now_ns() - state["elapsed"] & _U64
        self.block.forget(self.number)
        written = {tuple(key) for key in state["shadows"]["written"]}
        for holder, index, value in state["shadows"]["values"]:
            key = _key(self.number, holder, index)
            lib.kvmsr_shadow_put(self.block.raw, key, value, (holder, index) in written)

    @property
    def shadows(self) -> int:
        """Return the number of shadows that are kept."""
        return int(self.block.raw.n_shadows)

    @property
    def refused(self) -> int:
        """Return the number of writes that found no room."""
        return int(self.block.raw.refused)

    def _shadows(self) -> Any:
        if not self.block.raw.n_shadows:
            return ()
        return (s for s in self.block.raw.shadows if s.key)

    def _counters(self, raw: Any) -> Any:
        table = lib.kvmsr_table_at(raw, raw.active)
        return ffi.cast("uint64_t *", ffi.cast("char *", table) + table.counters)

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


def _key(vm: int, holder: int, index: int) -> int:
    scope, unit = (_THREAD, holder) if holder >= 0 else (-holder % _SCOPES, -holder // _SCOPES)
    return _MADE | vm << 54 | scope << 52 | unit << 32 | index
