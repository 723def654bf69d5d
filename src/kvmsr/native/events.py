# SPDX-License-Identifier: Apache-2.0
"""
Events of the native core
-------------------------

Take what C has recorded for the trace out of the shared memory. Under ``kvmsr exec`` a VMM can
write there, and may write nonsense, so each row is checked.
"""

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np

from kvmsr.native import ffi, lib
from kvmsr.native.block import Block
from kvmsr.native.table import Names
from kvmsr.policy import Op, Reason
from kvmsr.trace.file import LATENCY
from kvmsr.trace.file.columns import (
    CPL,
    MAX_CALLERS,
    OPS,
    OUTCOMES,
    REASONS,
    RIP,
    VALUE,
    event_type,
)

__all__ = ("LogEvent", "Rings")

_ROOM: Final = 1 << 14
_PARTS: Final = (int(lib.KVMSR_EVENTS) if lib is not None else 0) // _ROOM + 1
_MOST: Final = 1 << 18
_COPIED: Final = ("index", "value", "op", "reason", "rip", "cpl", "vm", "vcpu", "latency_ns")
_WORDS: Final = len(OPS), len(REASONS), len(OUTCOMES)
_READ: Final = OPS.index(Op.READ)
_GOT_VALUE: Final = OUTCOMES.index("value")

_Array = np.ndarray[Any, Any]

LogEvent = Callable[[Any, tuple[int, ...]], None]


def _dtype(struct: str, *names: str) -> np.dtype[Any]:
    """Return the numpy type of some fields of a structure of the headers."""
    places = dict(ffi.typeof(f"struct {struct}").fields)
    formats = [
        f"u{ffi.sizeof(places[name].type)}" if places[name].type.kind == "primitive" else "4u8"
        for name in names
    ]
    offsets = [places[name].offset for name in names]
    size = ffi.sizeof(f"struct {struct}")
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})


class Rings:
    """
    The events of all vCPUs of a run.

    :param block: the shared memory.
    :param names: the numbers of the rules' names.
    :param callers: how many callers rows have.
    :param log: called with each event that is to be logged, a ``struct kvmsr_event``, and its
        callers.
    :ivar event: the numpy type of a ``struct kvmsr_event``.
    :ivar logs: how many events may still be logged; whoever calls :meth:`take` sets it.
    """

    def __init__(
        self,
        block: Block,
        names: Names,
        log: LogEvent | None,
        *,
        callers: int = 0,
    ) -> None:
        assert tuple(map(str, Reason)) == REASONS
        self.logs = 0
        self._block, self._names, self._log = block, names, log
        self._raw = ffi.new("struct kvmsr_event[]", _ROOM)
        self._type = event_type(callers)
        self._callers = np.zeros((_ROOM, MAX_CALLERS if callers else 0), np.uint64)
        assert MAX_CALLERS == lib.KVMSR_CALLERS
        self._raw_callers = (
            ffi.cast("uint64_t *", ffi.from_buffer(self._callers)) if callers else ffi.NULL
        )
        self.event = _dtype(
            "kvmsr_event", "time_ns", "name", "verdict", "log", "traced", "has_rip", "n_callers",
            "guesses", *_COPIED,
        )  # fmt: skip
        self._row = _dtype(
            "kvmsr_row", "index", "name", "op", "reason", "used", "has", "values", "dones",
            "faults", "stops", "last_value", "traced",
        )  # fmt: skip
        self._events: _Array = np.frombuffer(ffi.buffer(self._raw), self.event)
        self._first = 0
        self._pids: dict[int, int] = {}
        self._reported: dict[int, _Array] = {}
        self._missing: dict[int, _Array] = {}

    def take(self) -> Iterator[_Array]:
        """
        Yield rows that are waiting, some at a time.

        However fast vCPUs add others, and however many there are, it comes to an end: what is left
        is taken by the next call, which begins with another vCPU. The time of rows is that of
        CLOCK_MONOTONIC, and their rules are numbers of the names.
        """
        left, vcpus = _MOST, self._block.n_vcpus
        for step in range(vcpus):
            number = (self._first + step) % vcpus
            for _ in range(_PARTS):
                count = self._take_some(number)
                taken = self._events[:count]
                self._log_some(taken)
                traced = taken["traced"] != 0
                rows = self._rows(taken[traced], self._callers[:count][traced], number)
                if len(rows):
                    yield rows
                left -= count
                if count < _ROOM:
                    break
            if left <= 0:
                self._first = (number + 1) % vcpus
                return

    def _take_some(self, number: int) -> int:
        """Take some events of a vCPU out of its ring, and return their number."""
        vcpu = self._block.vcpu(number)
        if vcpu.pid:
            self._pids[number] = vcpu.pid
        return int(lib.kvmsr_take_events(vcpu, self._raw, self._raw_callers, _ROOM))

    def _log_some(self, taken: _Array) -> None:
        if self._log is not None:
            for place in np.flatnonzero(taken["log"])[: self.logs]:
                self.logs -= 1
                count = min(int(taken["n_callers"][place]), self._callers.shape[1])
                self._log(self._raw[int(place)], tuple(self._callers[place, :count].tolist()))

    def _rows(self, taken: _Array, callers: _Array, number: int) -> _Array:
        sound = _are_sound(taken, taken["verdict"], len(self._names.known()))
        sound &= taken["vm"] < lib.KVMSR_MAX_VMS
        taken, callers = taken[sound], callers[sound]
        rows = np.zeros(len(taken), self._type)
        if callers.shape[1]:
            count = np.minimum(taken["n_callers"], MAX_CALLERS)
            callers = np.where(np.arange(MAX_CALLERS) < count[:, None], callers, 0)
            rows["callers"], rows["n_callers"], rows["guesses"] = callers, count, taken["guesses"]
        for name in _COPIED:
            rows[name] = taken[name]
        rows["time_ns"], rows["rule"] = taken["time_ns"], taken["name"]
        rows["outcome"], rows["count"] = taken["verdict"], 1
        rows["pid"] = self._pids.get(number, 0)
        rows["guest_ns"] = taken["time_ns"] - self._begun()[taken["vm"]]
        has_value = (taken["op"] != _READ) | (taken["verdict"] == _GOT_VALUE)
        where = np.where(taken["has_rip"] != 0, RIP | CPL, 0)
        rows["has"] = LATENCY | where | np.where(has_value, VALUE, 0)
        rows["value"][~has_value] = 0
        return rows

    def _begun(self) -> _Array:
        """Return when the clock of each VM began."""
        vms = min(int(self._block.raw.n_vms), lib.KVMSR_MAX_VMS)
        found = np.zeros(lib.KVMSR_MAX_VMS, np.uint64)
        for number in range(vms):
            found[number] = self._block.vm(number).begun_ns
        return found

    def counted(self, now_ns: int, *, last: bool) -> Iterator[_Array]:
        """
        Yield rows for the accesses that were counted since the last call, but are no events.

        A vCPU counts an access just before it makes it an event, so what is missing counts only if
        it was missing in the last call, too, or if this is the *last* one, and all vCPUs have
        ended.
        """
        for number in range(self._block.n_vcpus):
            vcpu = self._block.vcpu(number)
            if not vcpu.n_rows:
                continue
            raw = np.frombuffer(ffi.buffer(vcpu.rows), self._row)
            counts = np.stack([raw[name] for name in ("values", "dones", "faults", "stops")], 1)
            missing = (counts - raw["traced"]).astype(np.int64)
            before = self._missing.get(number, np.zeros_like(missing))
            found = missing if last else np.minimum(missing, before)
            self._missing[number] = missing
            reported = self._reported.setdefault(number, np.zeros_like(missing))
            fresh = np.clip(found - reported, 0, 0xFFFF_FFFF)
            reported += fresh
            if fresh.any():
                yield self._counted(raw.copy(), fresh, vcpu, number, now_ns)

    def _counted(self, raw: _Array, fresh: _Array, vcpu: Any, number: int, now: int) -> _Array:
        places, outcomes = np.nonzero(fresh)
        taken = raw[places]
        sound = _are_sound(taken, outcomes, len(self._names.known()))
        taken, outcomes, places = taken[sound], outcomes[sound], places[sound]
        rows = np.zeros(len(taken), self._type)
        for name in ("index", "op", "reason"):
            rows[name] = taken[name]
        rows["time_ns"], rows["rule"], rows["outcome"] = now, taken["name"], outcomes
        rows["count"] = fresh[places, outcomes]
        vm = int(vcpu.vm)
        rows["vm"], rows["vcpu"], rows["pid"] = vm, vcpu.id & 0xFFFF, self._pids.get(number, 0)
        rows["guest_ns"] = rows["time_ns"] - self._begun()[min(vm, lib.KVMSR_MAX_VMS - 1)]
        has = (taken["has"] & 1 != 0) & ((taken["op"] != _READ) | (outcomes == _GOT_VALUE))
        rows["value"] = np.where(has, taken["last_value"], 0)
        rows["has"] = np.where(has, VALUE, 0)
        return rows


def _are_sound(taken: _Array, outcomes: _Array, names: int) -> _Array:
    """Return which rows have numbers that mean something."""
    ops, reasons, verdicts = _WORDS
    found: _Array = (
        (taken["op"] < ops) & (taken["reason"] < reasons) & (outcomes < verdicts)
    ) & (taken["name"] < names)  # fmt: skip
    return found
