# SPDX-License-Identifier: Apache-2.0
"""
Latencies
---------

How long accesses took in user space, from when KVM handed them over until they were answered.
"""

from time import monotonic_ns
from typing import Final

from kvmsr.dispatch import Outcome
from kvmsr.policy import Access

__all__ = ("Latencies",)

_COUNT: Final = 32


class Latencies:
    """
    A histogram of latencies.

    Only one thread may add to it.

    :ivar counts: by *n*, the number of accesses that took less than 2**n nanoseconds, but at least
        2**(n-1). The last one has all that took longer.
    :ivar sum_ns: how long all of them took, in nanoseconds.
    """

    def __init__(self) -> None:
        self.counts = [0] * _COUNT
        self.sum_ns = 0

    def add(self, access: Access, outcome: Outcome, began_ns: int) -> None:
        """Count an access that is answered now; *began_ns*, of CLOCK_MONOTONIC, is when it came."""
        took = monotonic_ns() - began_ns
        self.counts[min(took.bit_length(), _COUNT - 1)] += 1
        self.sum_ns += took

    def update(self, other: "Latencies") -> None:
        """Add what *other* has counted."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.sum_ns += other.sum_ns
