# SPDX-License-Identifier: Apache-2.0
"""
The run that is watched
-----------------------

Asks a run, by its control socket, and changes it as ``kvmsr ctl`` does.
"""

import os
import tempfile
from pathlib import Path
from typing import Any, Final

from kvmsr.errors import KvmsrError, PolicyError, UsageError
from kvmsr.msr import Cpu, catalog
from kvmsr.policy.file import read_policy
from kvmsr.policy.file.lookup import NameLookup
from kvmsr.session.control import answers, ask

__all__ = ("Ended", "WatchedRun", "write_policy")

_WATCH: Final = (
    "pid", "name", "kind", "command", "started", "backend", "policy", "replacements", "vcpus",
    "accesses", "dropped_events", "failures", "serial", "rows", "rest", "changed", "msr",
)  # fmt: skip


class Ended(Exception):
    """The run has ended."""


class WatchedRun:
    """
    A run that is watched.

    :param target: its name, or a process ID as :func:`~kvmsr.session.control.ask` takes it.
    :ivar pid: its process ID.
    :raises UsageError: if there is no such run, or it may not be watched.
    """

    def __init__(self, target: str) -> None:
        first = ask(target, {"do": "status"}, ("pid", "started"))
        self.pid = int(first["pid"])
        self._started = first["started"]
        catalog().cpu = Cpu.from_text(str(first.get("cpu", "")))  # whose names the run prints
        self._serial = 0
        self._own: list[int] = []  # the number of replacements after each change made here

    def watch(self, msr: int | None) -> dict[str, Any]:
        """
        Return what has changed since the last call.

        :param msr: the MSR to know more about.
        :raises Ended: if the run has ended.
        :raises UsageError: if it does not answer.
        """
        request = {"do": "watch", "since": self._serial, "msr": msr}
        answer = self._ask(request, _WATCH)
        if answer["started"] != self._started:  # another run has got its process ID
            raise Ended
        self._serial = int(answer["serial"])
        return answer

    def change(self, index: int, given: dict[str, Any]) -> list[str]:
        """
        Change what happens to an MSR, and return warnings.

        :param given: ``read``, ``write``, ``reset`` and ``log``; see
            :func:`~kvmsr.policy.live.changed`.
        :raises Ended: if the run has ended.
        :raises KvmsrError: if the run refuses it.
        """
        answer = self._ask({"do": "change", "msr": index, **given}, ("warnings", "replacements"))
        number = int(answer["replacements"])
        if self._own and self._own[-1] != number - 1:
            self._own.clear()  # another policy was put in force in between
        self._own.append(number)
        return list(map(str, answer["warnings"]))

    def undo(self) -> list[str]:
        """
        Undo the last change that was made here, and return warnings.

        :raises Ended: if the run has ended.
        :raises UsageError: if there is none, or another policy was put in force since.
        """
        if not self._own:
            raise UsageError("nothing was changed here")
        now = int(self._ask({"do": "status"}, ("replacements",))["replacements"])
        if now != self._own[-1]:
            self._own.clear()
            raise UsageError(
                f"the policy was replaced since, and not here: see kvmsr ctl {self.pid} undo"
            )
        answer = self._ask({"do": "undo"}, ("warnings",))
        self._own.pop()
        if self._own:
            self._own[-1] = now + 1
        return list(map(str, answer["warnings"]))

    def policy_text(self) -> str:
        """
        Return the policy in force, with its changes, as a policy file.

        :raises Ended: if the run has ended.
        """
        return str(self._ask({"do": "changes"}, ("toml",))["toml"])

    def stop(self) -> None:
        """
        End the run, as ``kvmsr ctl stop`` does, without waiting for that.

        :raises Ended: if it has ended.
        """
        self._ask({"do": "stop"})

    def _ask(self, request: dict[str, Any], needs: tuple[str, ...] = ()) -> dict[str, Any]:
        try:
            return ask(str(self.pid), request, needs)
        except PolicyError:
            raise
        except KvmsrError as error:
            if answers(self.pid):
                raise
            raise Ended from error


def write_policy(file: Path, text: str, *, replace: bool) -> None:
    """
    Write a policy file, if it is valid there.

    :param replace: whether to replace an existing file.
    :raises UsageError: if it cannot be written, or there is one that is not to be replaced.
    :raises PolicyError: if it would not be valid: for example, because it names Python modules
        that are not beside it.
    """
    try:
        number, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".toml", dir=file.parent)
        try:
            with open(number, "w") as temporary:
                temporary.write(text)
            _check(name, file)
            Path(name).chmod(0o666 & ~_umask())
            if replace:
                Path(name).replace(file)
            else:
                os.link(name, file)  # which fails if there is a file
        finally:
            Path(name).unlink(missing_ok=True)
    except FileExistsError:
        raise UsageError(f"{file} exists") from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be written: {error.strerror}") from None


def _check(name: str, file: Path) -> None:
    try:
        read_policy(name, finder=NameLookup()).usable()
    except PolicyError as error:
        why = str(error).replace(name, str(file))
        raise PolicyError(f"not written, because it would not be valid: {why}") from None


def _umask() -> int:
    """Return the process's mask for new files."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
