# SPDX-License-Identifier: Apache-2.0
"""
Shadows
-------

Find out which register would have answered as it was recorded: its initial value, and how each of
its bits behaves.
"""

# Bits of a register do not depend on each other, except for faults. So each kind of bit is
# simulated for all 64 bits at once, from 0 and from 1; and a bit can be of that kind if all reads
# returned what the simulation has. Which writes fault is known, and such a write changes nothing.
#
# Then, which bits make a write fault is found out. They are among those that a faulting write would
# have changed, and that no other write changes. Reserved bits are mostly the highest ones, so these
# are taken: all that are higher than any bit that was changed, or else the highest.
#
# Most bits can be of several kinds: if nothing but 0 was ever written, a bit that reads 0 can be of
# any. People describe registers in few fields, so the kinds are chosen such that adjacent bits with
# the same kind form as few fields as possible.

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from kvmsr.msr import catalog
from kvmsr.policy import BitKind, Bits, Op
from kvmsr.trace.learn.seen import Seen, Stream

__all__ = ("Shadow", "has_read_back", "infer", "plain_reset", "with_lock")

_U64: Final = (1 << 64) - 1
_SIMULATED: Final = (
    BitKind.RW, BitKind.RO, BitKind.W1C, BitKind.W1S, BitKind.ONCE, BitKind.RC,
)  # fmt: skip
_ORDINARY: Final = (BitKind.RW, BitKind.RO)


class Shadow(NamedTuple):
    """A shadow's initial value and bits; None if all bits are ``rw``."""

    reset: int
    bits: Bits | None


def _registers(streams: Sequence[Stream], *, shared: bool) -> list[list[Seen]]:
    """Return the accesses to each register: each vCPU's, or the VM's."""
    found: list[list[Seen]] = []
    for stream in streams:
        if shared:
            found.append(stream.seen)
            continue
        by_vcpu: dict[int, list[Seen]] = {}
        for one in stream.seen:
            by_vcpu.setdefault(one.vcpu, []).append(one)
        found += by_vcpu.values()
    return found


def has_read_back(streams: Sequence[Stream]) -> bool:
    """Return whether a value was read after a write was done."""
    for seen in _registers(streams, shared=False):
        written = False
        for one in seen:
            if one.outcome == "value" and written:
                return True
            written = written or one.outcome == "done"
    return False


def plain_reset(streams: Sequence[Stream], *, shared: bool) -> int | None:
    """Return the initial value of a shadow whose bits are all ``rw``; None if it is not one."""
    reset: int | None = None
    for seen in _registers(streams, shared=shared):
        value: int | None = None
        for one in seen:
            if one.outcome == "done":
                value = one.value
            elif one.outcome == "value":
                if value is None:
                    reset = one.value if reset is None else reset
                if one.value != (reset if value is None else value):
                    return None
    return reset or 0


def infer(streams: Sequence[Stream], *, shared: bool) -> Iterator[Shadow]:
    """
    Yield the shadows that fit best.

    They differ in the initial value of bits that were not read before they were written: 0, or, if
    that does not explain which writes fault, as they were first written.

    :param shared: whether the vCPUs of a VM share the register.
    """
    registers = _registers(streams, shared=shared)
    fits = {(kind, ones): _fitting(registers, kind, ones) for kind in _SIMULATED for ones in (0, 1)}
    outcomes = {(one.op, one.outcome) for seen in registers for one in seen}
    faults = (Op.WRITE, "fault") in outcomes
    firsts = {0: None, _first_written(registers): None} if faults else {0: None}
    for first in firsts:
        yield _inferred(registers, fits, first, faults=faults)


def _inferred(
    registers: list[list[Seen]], fits: dict[tuple[BitKind, int], int], first: int, *, faults: bool
) -> Shadow:
    options = [_options(fits, bit) for bit in range(64)]
    shadow = _chosen(options, fits, first)
    if faults:
        constant = fits[BitKind.RO, 0] | fits[BitKind.RO, 1]
        changed, refused = _changes(registers, shadow)
        reserved = constant & ~changed
        above = -1 << changed.bit_length()
        needed = 0
        for write in refused:
            suspects = write & reserved
            needed |= suspects & above or 1 << suspects.bit_length() >> 1
        for bit in range(64):
            if needed >> bit & 1:
                options[bit] = {BitKind.FAULT}
            elif reserved >> bit & 1:
                options[bit] = options[bit] | {BitKind.FAULT}
        shadow = _chosen(options, fits, first)
    return shadow if shadow.bits != Bits(rw=_U64) else Shadow(shadow.reset, None)


def _fitting(registers: list[list[Seen]], kind: BitKind, ones: int) -> int:
    """Return the bits that can be of *kind*, if they begin as *ones* says."""
    bits = Bits(**{str(kind): _U64})
    wrong = 0
    for seen in registers:
        state, is_first = _U64 if ones else 0, True
        for one in seen:
            if one.outcome == "value":
                wrong |= state ^ one.value
                state &= ~bits.rc
            elif one.outcome == "done":
                state = bits.write(state, one.value, first=is_first) or 0
                is_first = False
    return _U64 & ~wrong


def _options(fits: dict[tuple[BitKind, int], int], bit: int) -> set[BitKind]:
    """Return the kinds that a bit can be of; if there are any, only ordinary ones."""
    found = {kind for (kind, _), mask in fits.items() if mask >> bit & 1}
    return found.intersection(_ORDINARY) or found or {BitKind.RW}


def _first_written(registers: list[list[Seen]]) -> int:
    """Return the value that was written first; a guest often writes back what it expects."""
    done = (one.value for seen in registers for one in seen if one.outcome == "done")
    return next(done, 0)


def _chosen(
    options: list[set[BitKind]], fits: dict[tuple[BitKind, int], int], first: int
) -> Shadow:
    """Return the shadow with the fewest fields: each goes on for as long as it can."""
    masks = dict.fromkeys(BitKind, 0)
    bit = 0
    while bit < 64:
        ends = {kind: _end(options, bit, kind) for kind in BitKind if kind in options[bit]}
        kind = max(ends, key=lambda kind: ends[kind])
        masks[kind] |= (1 << ends[kind]) - (1 << bit)
        bit = ends[kind]
    reset = 0
    for kind, mask in masks.items():
        simulated = BitKind.RO if kind is BitKind.FAULT else kind
        if not mask:
            continue
        zero, one = fits[simulated, 0] & mask, fits[simulated, 1] & mask
        reset |= one & (~zero | first)
    return Shadow(reset, Bits(**{str(kind): mask for kind, mask in masks.items()}))


def _end(options: list[set[BitKind]], bit: int, kind: BitKind) -> int:
    while bit < 64 and kind in options[bit]:
        bit += 1
    return bit


def _changes(registers: list[list[Seen]], shadow: Shadow) -> tuple[int, list[int]]:
    """Return the bits that writes changed, and those that each faulting write would change."""
    assert shadow.bits is not None
    changed, refused = 0, []
    for seen in registers:
        state, is_first = shadow.reset, True
        for one in seen:
            if one.outcome == "value":
                state &= ~shadow.bits.rc
            elif one.outcome == "done":
                changed |= state ^ one.value
                state = shadow.bits.write(state, one.value, first=is_first) or 0
                is_first = False
            elif one.op == Op.WRITE:
                refused.append(state ^ one.value)
    return changed, refused


def with_lock(index: int, streams: Sequence[Stream], *, shared: bool) -> Iterator[Shadow]:
    """Yield the shadow with a bit that locks it, if a write to it was the last that succeeded."""
    lock = _U64
    for seen in _registers(streams, shared=shared):
        writes = [one for one in seen if one.op == Op.WRITE]
        done = [one.value for one in writes if one.outcome == "done"]
        locks = any(one.outcome == "fault" for one in writes)
        if locks and (not done or any(one.outcome == "done" for one in writes[len(done) :])):
            return
        if locks:
            lock &= done[-1]
        for value in done[:-1]:
            lock &= ~value
    if not lock:
        return
    msr = catalog().get(index)
    known = sum(one.mask for one in (msr.fields if msr else ()) if one.kind == "lock")
    lock = lock & known or lock
    lock &= -lock
    succeeded = [
        Stream(stream.trace, [one for one in stream.seen if one.outcome != "fault"])
        for stream in streams
    ]
    reset, bits = next(infer(succeeded, shared=shared))
    bits = bits or Bits(rw=_U64)
    others = {str(kind): mask & ~lock for kind, mask in zip(BitKind, bits, strict=True)}
    yield Shadow(reset & ~lock, Bits(**{**others, "lock": lock}))
