# SPDX-License-Identifier: Apache-2.0
"""
Recent accesses of the native core
----------------------------------

Have C note the accesses to some MSRs, and read what it has noted. Under ``kvmsr exec`` a VMM can
write there, and may write nonsense, so each entry is checked.
"""

import time
from collections.abc import Collection
from typing import Any, Final

from kvmsr.native import ffi, lib
from kvmsr.native.block import Block
from kvmsr.native.table import Names
from kvmsr.native.words import OPS, REASONS, VERDICTS, by_number
from kvmsr.trace import Recent

__all__ = ("native_recent", "watch_native")

_OPS, _REASONS, _VERDICTS = by_number(OPS), by_number(REASONS), by_number(VERDICTS)
_NS: Final = 1e9


def watch_native(block: Block, indices: Collection[int]) -> None:
    """Have C note the accesses to these MSRs, and to no others. More than it can note are left."""
    watched = block.tables.watched
    wanted = {index + 1 for index in indices}
    for place, number in enumerate(watched):  # those that stay keep their rings
        if number not in wanted:
            watched[place] = 0
    free = [place for place, number in enumerate(watched) if not number]
    for place, number in zip(free, sorted(wanted - set(watched)), strict=False):
        watched[place] = number
    block.tables.watching = bool(wanted)


def native_recent(block: Block, names: Names) -> list[Recent]:
    """Return the accesses that C has noted, each vCPU's by itself, in no particular order."""
    found: list[Recent] = []
    raw = ffi.new("struct kvmsr_recent *")
    now = time.monotonic_ns()
    to_epoch = time.time_ns() - now
    for vcpu in block.vcpus():
        for number in range(int(lib.KVMSR_ALL_RECENT) if any(vcpu.n_recent) else 0):
            if lib.kvmsr_read_recent(vcpu, number, raw) and _is_sound(raw):
                found.append(_recent(raw, names, min(raw.time_ns, now) + to_epoch))
    return found


def _is_sound(raw: Any) -> bool:
    return bool(raw.op < len(_OPS) and raw.reason < len(_REASONS) and raw.verdict < len(_VERDICTS))


def _recent(raw: Any, names: Names, when_ns: int) -> Recent:
    return Recent.of(
        when_ns / _NS,
        raw.vm,
        raw.vcpu,
        _OPS[raw.op],
        raw.index,
        raw.value,
        _REASONS[raw.reason],
        _VERDICTS[raw.verdict],
        names.name(raw.name),
    )
