# SPDX-License-Identifier: Apache-2.0
"""
The result of a run
-------------------

How a run ended and what happened in it. The JSON form is a contract.
"""

import enum
from dataclasses import asdict, dataclass
from typing import Any, Final

from kvmsr.dispatch import HandlerFailure
from kvmsr.policy.plan import NotObserved
from kvmsr.session.position import Position
from kvmsr.trace import Summary

__all__ = ("End", "EndKind", "RunResult", "VmReport")

SCHEMA: Final = 1

CRASHED: Final = 5
FAILED: Final = 6
"""Exit status if the policy stopped the run or a handler failed. A debug exit's is always odd."""
TIMEOUT: Final = 124
INTERRUPTED: Final = 130


class EndKind(enum.StrEnum):
    """How a run ended, or that it has not."""

    DEBUG_EXIT = "debug-exit"
    HALT = "halt"
    SHUTDOWN = "shutdown"
    POWEROFF = "poweroff"
    RESET = "reset"
    TIMEOUT = "timeout"
    EMULATION_FAILURE = "emulation-failure"
    STOP = "stop"
    ERROR = "error"
    VMM = "vmm"
    RUNNING = "running"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class VmReport:
    """
    What became of a VM of another VMM.

    :ivar pid: the process that created it.
    :ivar process: that process's name.
    :ivar vcpus: number of vCPUs that it had at the same time.
    :ivar accesses: number of accesses that were answered.
    :ivar resets: number of times that its guest was reset.
    :ivar losses: lines about what was not under the policy.
    """

    pid: int
    process: str
    vcpus: int
    accesses: int
    resets: int
    losses: tuple[str, ...] = ()


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
    :ivar losses: what was not under the policy, a line each.
    :ivar vms: the VMs, if another VMM ran them.
    :ivar not_observed: what the policy wants to observe and is left with KVM, with the reasons.
    :ivar positions: where each vCPU was, if not the guest itself ended the run.
    :ivar last_line: the last line of the guest's output.
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
    losses: tuple[str, ...] = ()
    vms: tuple[VmReport, ...] = ()
    not_observed: tuple[NotObserved, ...] = ()
    positions: tuple[Position, ...] = ()
    last_line: str = ""
    lost: bool = False

    @property
    def exit_status(self) -> int:
        """
        Return the exit status of the run.

        A failed handler, or a VM that was not under the policy, must not look like a run that ended
        well, so it changes the status; but if another VMM failed, its own status is passed on.
        """
        passed_on = self.end.kind is EndKind.VMM and self.end.code
        failed = self.failure_count or self.losses
        return FAILED if failed and not passed_on else self.end.code

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
            "losses": list(self.losses),
            "notes": list(self.notes),
            "not_observed": [one.as_dict() for one in self.not_observed],
            "vms": [asdict(vm) for vm in self.vms],
            "vcpus": [place.as_dict() for place in self.positions],
            "last_line": self.last_line,
        }
