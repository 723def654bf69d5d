# SPDX-License-Identifier: Apache-2.0
"""
Requests to a run
-----------------

What the requests of ``kvmsr ctl`` do, whoever drives the guests.
"""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from kvmsr.errors import UsageError
from kvmsr.msr import catalog
from kvmsr.policy import Policy
from kvmsr.policy.file import load_policy
from kvmsr.policy.file.toml import as_json, to_toml
from kvmsr.policy.live import changed, live_rules
from kvmsr.policy.selector import Ranges
from kvmsr.session.change import Change
from kvmsr.session.result import RunResult
from kvmsr.session.session import Session
from kvmsr.session.state import parse_state
from kvmsr.session.supervisor import Witness, runs_code
from kvmsr.session.watching import Watching
from kvmsr.trace import Summary

__all__ = ("About", "Driver", "Requests")


class Driver(Protocol):
    """Whoever drives the guests of a run. Its methods may be called from any thread."""

    session: Session

    def stop(self, why: str) -> None:
        """End the run, as the action ``stop`` does."""

    def installed(self) -> None:
        """
        Wait until all VMs have the filter of the policy in force.

        :raises UsageError: if KVM refuses it for one of them.
        """

    def held(self) -> AbstractContextManager[None]:
        """
        Return a context in which no vCPU runs, if the driver can do that.

        :raises UsageError: if a vCPU does not stop.
        """

    def so_far(self) -> RunResult:
        """Return the result of the run so far."""


@dataclass(frozen=True, slots=True)
class About:
    """
    What people want to know about a run.

    :ivar kind: ``run`` or ``exec``.
    :ivar command: the image or the command that is run.
    :ivar name: the run's name, or "".
    """

    kind: str
    command: str
    name: str = ""


class Requests:
    """
    Handles the requests of ``kvmsr ctl``. Any thread may call it.

    :param driver: drives the guests.
    :param about: describes the run.
    :param witness: the connection to the supervisor.
    :param observe: the MSRs that are observed whatever the policy in force says.
    """

    def __init__(
        self, driver: Driver, about: About, witness: Witness, observe: Ranges = ()
    ) -> None:
        self._driver = driver
        self._session = driver.session
        self._about = about
        self._witness = witness
        self._observe = observe
        self._change = Change(partial(witness.changes, driver.session), driver.installed)
        self._started = time.time()
        self._watching: Watching | None = None

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """
        Handle a request, and return the answer; both are JSON types.

        :raises KvmsrError: if that fails. Nothing has changed then.
        """
        match request:
            case {"do": "policy", "file": str(file)}:
                return {"warnings": self.replace(file)}
            case {"do": "undo"}:
                warnings = self._session.undo(self._change)
                return {"warnings": warnings, "policy": self._policy_name()}
            case {"do": "show"}:
                policy = self._session.plan.policy
                shown = {"toml": to_toml(policy), "policy": as_json(policy)}
                return {**self._in_force(), **shown}
            case {"do": "status"}:
                return self._status(self._session.summary())
            case {"do": "watch", "since": int(since)}:
                return self._watch(since, request.get("msr"))
            case {"do": "change", "msr": int(index)}:
                return {"warnings": self._change_msr(index, request), **self._in_force()}
            case {"do": "changes"}:
                return self._changes()
            case {"do": "stop"}:
                self._driver.stop("stopped by kvmsr ctl")
                return {"pid": self._witness.front}
            case {"do": "summary"}:
                return self._driver.so_far().as_dict()
        return self._registers(request)

    def _registers(self, request: dict[str, Any]) -> dict[str, Any]:
        match request:
            case {"do": "save"}:
                with self._driver.held():
                    return {"state": self._session.state().as_json()}
            case {"do": "load", "state": str(text), "file": str(file)}:
                state = parse_state(text.encode(), file)
                with self._driver.held():
                    self._session.restore(state, file)
                return {}
            case {"do": "reset"}:
                with self._driver.held():
                    self._session.reset()
                return {}
        raise UsageError("this version of kvmsr does not know this request")

    @property
    def policy(self) -> Policy:
        """Return the policy in force."""
        return self._session.plan.policy

    def read_again(self) -> Policy:
        """
        Return the policy in force as its files say now.

        :raises KvmsrError: if they cannot be read, or have an error.
        """
        if not self.policy.files:
            raise UsageError("it did not come from a file")
        return self._read(self.policy.source)

    def replace(self, file: str) -> list[str]:
        """
        Put the policy in *file* in force, and return warnings.

        :raises KvmsrError: if that fails. Nothing has changed then.
        """
        return self.put_in_force(self._read(file))

    def _read(self, file: str) -> Policy:
        return load_policy(file).observing(self._observe)

    def put_in_force(self, policy: Policy) -> list[str]:
        """
        Put *policy* in force, and return warnings.

        :raises KvmsrError: if that fails. Nothing has changed then.
        """
        warnings = self._session.replace(policy, self._change)
        if runs_code(policy) and not self._witness.watched:
            warnings.append(
                "no supervisor watches over this policy's Python, because the run began without"
                " any; if a handler holds the interpreter, end the run with kill -9"
            )
        return warnings

    def _change_msr(self, index: int, request: dict[str, Any]) -> list[str]:
        """Change what happens to one MSR, and return warnings."""
        keys = ("read", "write", "reset", "log")
        given = {key: request[key] for key in keys if request.get(key) is not None}
        return self.put_in_force(changed(self.policy, index, **given))

    def _changes(self) -> dict[str, Any]:
        from kvmsr.policy.file.changes import changes_toml  # not needed by most runs

        return {"toml": changes_toml(self.policy), "count": len(live_rules(self.policy))}

    def _watch(self, since: int, msr: object) -> dict[str, Any]:
        """Return what has changed since an answer, and more about one MSR if that is wanted."""
        if self._watching is None:
            self._watching = Watching(self._session)
        summary = self._session.summary()
        serial, rows = self._watching.rows(summary, since)
        return {
            **self._status(summary),
            "serial": serial,
            "rows": [row.as_dict() for row in rows],
            "rest": summary.rest(),
            "changed": sorted({rule.msrs[0][0] for rule in live_rules(self.policy)}),
            "msr": self._watching.msr(msr) if isinstance(msr, int) else None,
        }

    def _policy_name(self) -> str:
        policy = self._session.plan.policy
        return policy.source or policy.name

    def _in_force(self) -> dict[str, Any]:
        return {
            "schema": 1,
            "source": self._policy_name(),
            "since": _time(self._session.since),
            "replacements": self._session.replacements,
        }

    def _status(self, summary: Summary) -> dict[str, Any]:
        vcpus = self._session.vcpu_counts()
        totals = summary.totals()
        return {
            "schema": 1,
            "pid": self._witness.front,
            "name": self._about.name,
            "kind": self._about.kind,
            "command": self._about.command,
            "started": _time(self._started),
            "backend": self._session.backend,
            "cpu": str(catalog().cpu or ""),
            "policy": self._policy_name(),
            "policy_since": _time(self._session.since),
            "replacements": self._session.replacements,
            "vms": len(vcpus),
            "vcpus": sum(vcpus.values()),
            "accesses": totals["reads"] + totals["writes"],
            "dropped_events": self._session.dropped_events,
            "failures": self._session.failure_count,
        }


def _time(seconds: float) -> str:
    """Return a time as ISO 8601 has it, in seconds and UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
