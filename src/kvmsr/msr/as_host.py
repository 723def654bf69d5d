# SPDX-License-Identifier: Apache-2.0
"""
KVM asked as the host
---------------------

What KVM_GET_MSRS and KVM_SET_MSRS do differently from a guest's own RDMSR and WRMSR. Whoever takes
an access from KVM and then passes it on can only ask in this way.
"""

import functools
from typing import Any, Final, NamedTuple

from kvmsr.msr.data_file import data_file

__all__ = ("REFUSED", "AsHost", "as_host", "never_unknown")

REFUSED: Final = "it may succeed, where a guest gets #GP"
"""What is different where KVM refuses every guest. Such an access comes to user space anyway."""

_WORDS: Final = {"same": "", "refused": REFUSED}


class AsHost(NamedTuple):
    """
    Adjacent MSRs for which the host's access compares with the guest's in the same way.

    :ivar first: the first MSR.
    :ivar last: the last MSR.
    :ivar reads: what is different if the host reads, in words; "" if KVM gives the same; None if
        no KVM handles reads.
    :ivar writes: the same for writes.
    :ivar refuses_as_invalid: whether every KVM knows these MSRs, so that what it refuses is
        invalid, not unknown.
    :ivar by_cpu: whether some KVMs let the CPU do these accesses. What the CPU refuses is #GP, and
        does not come to user space.
    """

    first: int
    last: int
    reads: str | None
    writes: str | None
    refuses_as_invalid: bool = False
    by_cpu: bool = False


@functools.cache
def as_host() -> tuple[AsHost, ...]:
    """
    Return what is known about accesses as the host, in ascending order and without overlaps.

    It covers what :func:`~kvmsr.msr.handled` lists. The data file ``as_host.toml`` names the
    sources.
    """
    import tomllib

    rows: Any = tomllib.loads(data_file("as_host.toml").decode())["row"]
    spans = [
        _span(row, first)
        for row in rows
        for first in range(row["first"], row["last"] + 1, row.get("step", 1 << 32))
    ]
    return tuple(sorted(spans))


@functools.cache
def never_unknown() -> tuple[tuple[int, int], ...]:
    """
    Return the MSRs that every KVM knows even where it refuses to read them, as ranges in order.

    If KVM refuses the host an access to one of them, the guest's access would have been invalid.
    """
    found: list[tuple[int, int]] = []
    for row in as_host():
        if not row.refuses_as_invalid:
            continue
        if found and found[-1][1] + 1 == row.first:
            found[-1] = found[-1][0], row.last
        else:
            found.append((row.first, row.last))
    return tuple(found)


def _span(row: dict[str, Any], first: int) -> AsHost:
    last = first if "step" in row else row["last"]
    reads, writes = (_different(row.get(key)) for key in ("reads", "writes"))
    invalid = row.get("refuses") == "invalid"
    return AsHost(first, last, reads, writes, invalid, row.get("cpu", False))


def _different(text: str | None) -> str | None:
    return None if text is None else _WORDS.get(text, text)
