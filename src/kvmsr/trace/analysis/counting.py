# SPDX-License-Identifier: Apache-2.0
"""
Dropped accesses
----------------

A trace may have rows for accesses that came too fast to be recorded one by one. Whoever shows a
trace shows how many there are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kvmsr.trace.file import LATENCY, Grade, Trace

__all__ = ("CountingTrace",)


class CountingTrace(Trace):
    """
    A trace that counts, as it is read, the accesses that have no row of their own.

    :ivar counted: the number of accesses that were only counted.
    """

    def __init__(self, path: Path, source: BinaryIO | None = None) -> None:
        self.counted = 0
        super().__init__(path, source)

    def batches(self) -> Iterator[np.ndarray[Any, Any]]:
        """Yield the rows, as :meth:`Trace.batches` does."""
        for events in super().batches():
            alone = events["count"][events["has"] & LATENCY == 0]
            self.counted += int(alone.sum(dtype=np.int64))
            yield events

    @property
    def dropped(self) -> int:
        """Return the number of accesses that came too fast to be recorded, or 0 if unknown."""
        return self.counted if self.head.grade is Grade.ALL else 0
