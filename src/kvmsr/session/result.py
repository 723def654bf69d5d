# SPDX-License-Identifier: Apache-2.0
"""
How a run ended
---------------

The end of a run and what is told about it; the JSON form is a contract.
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
"""Exit status where the policy stopped the run or a handler failed: even, as no debug exit is."""
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

    :ivar code: the exit status that it asks for: the guest's own where it has one.
    :ivar detail: what happened, for people.
    """

    kind: EndKind
    code: int = 0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RunResult:
    """
    What a run leaves.

    :ivar end: how it ended.
    :ivar summary: who asked for what, and what it was told.
    :ivar wall_s: how long it took, in seconds.
    :ivar failures: the first handler failures.
    :ivar failure_count: how many there were.
    :ivar notes: what the user should know, a line each.
    :ivar lost: whether the summary was lost with the process that had it, as a note then says.
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
        Return the exit status.

        A failed handler must not look like a guest that ended well; but what another VMM has to say
        of its own failure is passed on.
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
