# SPDX-License-Identifier: Apache-2.0
"""
What a trace is to have
-----------------------
"""

import enum
from dataclasses import dataclass
from pathlib import Path

__all__ = ("Grade", "TraceOptions")


class Grade(enum.StrEnum):
    """
    How much is recorded.

    ``count``: only how often each MSR was accessed, second by second. ``once``: the first access of
    each kind (MSR, direction, reason, rule and outcome) on each vCPU. ``change``: those, and each
    access whose value differs from that of the access before. ``all``: each access. Accesses that
    are not recorded one by one are counted.
    """

    COUNT = "count"
    ONCE = "once"
    CHANGE = "change"
    ALL = "all"


@dataclass(frozen=True, slots=True)
class TraceOptions:
    """
    How to record a run.

    :ivar path: the trace file.
    :ivar grade: how much is recorded.
    :ivar rip: whether RIP and CPL are recorded. That takes two ioctls for each access.
    :ivar callers: how many callers of the guest's function are recorded, 0 to 8, with RIP and CPL.
    :ivar lossless: whether a vCPU waits if accesses come faster than they can be written; otherwise
        those that find no room are only counted.
    """

    path: Path
    grade: Grade = Grade.ALL
    rip: bool = False
    callers: int = 0
    lossless: bool = False

    @property
    def where(self) -> bool:
        """Whether RIP and CPL are recorded."""
        return self.rip or self.callers > 0
