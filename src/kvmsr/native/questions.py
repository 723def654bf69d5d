# SPDX-License-Identifier: Apache-2.0
"""
The native dispatcher
---------------------

A plan that C answers accesses by, and Python where the plan needs it: the same outcomes, the same
state afterwards, as :class:`~kvmsr.dispatch.Dispatcher` has by itself.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from kvmsr.dispatch.dispatcher import Dispatcher
from kvmsr.dispatch.outcome import Outcome, Verdict
from kvmsr.errors import PolicyError
from kvmsr.native import ffi, lib
from kvmsr.native.block import Block
from kvmsr.native.table import Names, TableRule, compile_table, table_rules
from kvmsr.policy import Access, Op, Reason, Scope

__all__ = ("NativeDispatcher", "access_of", "made_access", "outcome_of")

_OPS: Final = (Op.READ, Op.WRITE)
_REASONS: Final = (Reason.UNKNOWN, Reason.INVALID, Reason.FILTER)
_VERDICTS: Final = (
    Verdict.VALUE, Verdict.DONE, Verdict.FAULT, Verdict.STOP, Verdict.KERNEL,
)  # fmt: skip
_NUMBERS: Final = {verdict: number for number, verdict in enumerate(_VERDICTS)}
_VALUE, _STOP = Verdict.VALUE, _NUMBERS[Verdict.STOP]
_THREAD, _SCOPES = 0, len(Scope)
_HAS, _WRITTEN = 2, 4
_MADE: Final = 1 << 63
_U64: Final = (1 << 64) - 1

_new: Callable[..., Access] = tuple.__new__


def access_of(raw: Any) -> Access:
    """Return the access that a ``struct kvmsr_access`` holds."""
    return made_access(raw.value, raw.vcpu, raw.index, raw.op, raw.reason)


def made_access(value: int, vcpu: int, index: int, op: int, reason: int) -> Access:
    """Return the access that C has in these numbers."""
    return _new(Access, (vcpu, _OPS[op], index, value, _REASONS[reason]))


def outcome_of(raw: Any, names: Names) -> Outcome:
    """Return the outcome that a ``struct kvmsr_outcome`` holds."""
    return Outcome(_VERDICTS[raw.verdict], names.name(raw.name), raw.value)


class NativeDispatcher:
    """
    Answers accesses of one VM as a dispatcher's plan says.

    :param dispatcher: knows what Python has to do.
    :param block: where the table and the shadows are.
    :param names: numbers those who decide.
    :param vm: the VM's number in the block.
    :ivar rules: the rules of the table by their numbers.
    """

    def __init__(self, dispatcher: Dispatcher, block: Block, names: Names, *, vm: int = 0) -> None:
        self.dispatcher = dispatcher
        self.block = block
        self.names = names
        self.rules: list[TableRule] = table_rules(dispatcher.plan)
        self._vm = vm
        self._acts: list[Callable[[Access], Outcome] | None] = [
            None if rule is None else dispatcher.act(rule, op) for rule, op, _ in self.rules
        ]

    def install(self, serial: int = 0) -> None:
        """
        Let the plan hold from now on, for every VM of the block.

        :param serial: the plan's number in the run.
        """
        plan, tells = self.dispatcher.plan, self.dispatcher.tells
        self.block.install(compile_table(plan, self.names, serial=serial, tells=tells))

    @staticmethod
    def number_of(verdict: Verdict) -> int:
        """Return C's number of *verdict*."""
        return _NUMBERS[verdict]

    def asks_python(self, rule: int) -> bool:
        """Tell whether *rule*, a number that may be anything, is one that Python answers."""
        return rule < len(self._acts) and self._acts[rule] is not None

    def answer(self, access: Access, raw: Any) -> Outcome:
        """Return what Python does of an access, and put it into *raw*, an outcome that asks."""
        if raw.verdict == _STOP:
            return Outcome(Verdict.STOP, self.names.name(raw.name))
        number = raw.rule
        act = self._acts[number]
        assert act is not None
        outcome: Outcome = act(access)
        verdict, rule, value = outcome
        if verdict is _VALUE:
            raw.verdict, raw.value = 0, value
        else:
            raw.verdict = _NUMBERS[verdict]
        if rule is not self.rules[number][2]:  # on_error, say
            raw.name = self.names.number(rule)
        return outcome

    def tell(self, access: Access, raw: Any) -> None:
        """Tell an access that C has answered, if its rule wants that."""
        rule = self.rules[raw.rule][0] if raw.rule < len(self.rules) else None
        self.dispatcher.tell(rule, access, outcome_of(raw, self.names))

    # The state, in the form that the dispatcher's own has

    def state(self) -> dict[str, Any]:
        """Return what must survive a snapshot, as JSON knows it; no vCPU may run meanwhile."""
        values, written = [], []
        raw = self.block.raw
        for shadow in self._shadows():
            key = shadow.key
            if key >> 54 & 0x1FF != self._vm or not shadow.state & _HAS:
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
        Become what :meth:`state` told; no vCPU may run meanwhile.

        :raises PolicyError: if that was under another policy.
        """
        counted = self._counted()
        if set(state["conditions"]) != {name for _, name in counted}:
            raise PolicyError("this is the state of another policy's conditions")
        self.dispatcher.models.restore(state["models"])
        counters = self._counters(self.block.raw)
        for number, name in counted:
            counters[number] = state["conditions"][name]
        # Before the host's own beginning, perhaps: C wraps around as this does.
        self.block.raw.begun_ns = lib.kvmsr_now_ns() - state["elapsed"] & _U64
        lib.kvmsr_shadow_forget(self.block.raw, self._vm)
        written = {tuple(key) for key in state["shadows"]["written"]}
        for holder, index, value in state["shadows"]["values"]:
            key = _key(self._vm, holder, index)
            lib.kvmsr_shadow_put(self.block.raw, key, value, (holder, index) in written)

    @property
    def shadows(self) -> int:
        """Return how many MSRs are kept."""
        return int(self.block.raw.n_shadows)

    @property
    def refused(self) -> int:
        """Return how many writes found no room."""
        return int(self.block.raw.refused)

    def _shadows(self) -> Any:
        if not self.block.raw.n_shadows:
            return ()
        return (s for s in self.block.raw.shadows if s.key)

    def _counters(self, raw: Any) -> Any:
        table = lib.kvmsr_table_at(raw, raw.active)
        return ffi.cast("uint64_t *", ffi.cast("char *", table) + table.counters)

    def _counted(self) -> list[tuple[int, str]]:
        """Return number and name of each rule that counts its matches."""
        places = {id(rule): n for n, rule in enumerate(self.dispatcher.plan.policy.rules)}
        counting = [
            f"{places[id(rule)]}.{op}" for rule, op, _ in self.rules
            if rule is not None and rule.when is not None and rule.when.counts
        ]  # fmt: skip
        return list(enumerate(counting))


def _holder(key: int) -> int:
    """Return the holder as :class:`~kvmsr.dispatch.state.Shadows` numbers it."""
    scope, unit = key >> 52 & 3, key >> 32 & 0xFFFFF
    return unit if scope == _THREAD else -_SCOPES * unit - scope


def _key(vm: int, holder: int, index: int) -> int:
    scope, unit = (_THREAD, holder) if holder >= 0 else (-holder % _SCOPES, -holder // _SCOPES)
    return _MADE | vm << 54 | scope << 52 | unit << 32 | index
