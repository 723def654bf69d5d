# SPDX-License-Identifier: Apache-2.0
"""
The result of a run
-------------------

How a run ended and what happened in it. The JSON form is a contract.
"""

import enum
from dataclasses import dataclass
from typing import Any, Final

from kvmsr.dispatch import HandlerFailure
from kvmsr.trace import Summary

__all__ = ("End", "EndKind", "RunResult")

SCHEMA: Final = 1

CRASHED: Final = 5
FAILED: Final = 6
"""Exit status if the policy stopped the run or a handler failed. A debug exit's is always odd."""
TIMEOUT: Final = 124
INTERRUPTED: Final = 130


class EndKind(enum.StrEnum):
    """How a run ended."""

    DEBUG_EXIT = "debug-exit"
    HALT = "halt"
    SHUTDOWN = "shutdown"
    RESET = "reset"
    TIMEOUT = "timeout"
    EMULATION_FAILURE = "emulation-failure"
    STOP = "stop"
    ERROR = "error"
    VMM = "vmm"


@dataclass(frozen=True, slots=True)
class End:
    """
    The end of a run.

    :ivar kind: how the run ended.
    :ivar code: the exit status for it: the guest's own if it has one.
    :ivar detail: what happened, in words.
    """

    kind: EndKind
    code: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RunResult:
    """
    The result of a run.

    :ivar backend: the backend's name.
    :ivar image: the image or command that was run.
    :ivar policy: the policy's file or name.
    :ivar end: how the run ended.
    :ivar summary: the summary of all accesses.
    :ivar wall_s: how long the run took, in seconds.
    :ivar failures: the first handler failures.
    :ivar failure_count: number of handler failures.
    :ivar notes: lines that the user should read.
    :ivar lost: whether the summary was lost with the process that kept it; a note says so, too.
    """

    backend: str
    image: str
    policy: str
    end: End
    summary: Summary
    wall_s: float
    failures: tuple[HandlerFailure, ...] = ()
    failure_count: int = 0
    notes: tuple[str, ...] = ()
    lost: bool = False

    @property
    def exit_status(self) -> int:
        """
        Return the exit status of the run.

        A failed handler must not look like a guest that ended well, so it changes the status; but
        if another VMM failed, its own status is passed on.
        """
        passed_on = self.end.kind is EndKind.VMM and self.end.code
        return FAILED if self.failure_count and not passed_on else self.end.code

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON summary."""
        return {
            "schema": SCHEMA,
            "backend": self.backend,
            "image": self.image,
            "policy": self.policy,
            "wall_s": round(self.wall_s, 3),
            "exit": {
                "kind": str(self.end.kind),
                "code": self.exit_status,
                "guest_code": self.end.code,
                "detail": self.end.detail,
            },
            **self.summary.as_dict(),
            "handler_failures": {
                "count": self.failure_count,
                "first": [
                    {
                        "handler": failure.handler,
                        "rule": failure.rule,
                        "access": str(failure.access),
                        "message": failure.message,
                    }
                    for failure in self.failures
                ],
            },
            "notes": list(self.notes),
        }
