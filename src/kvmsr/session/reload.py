# SPDX-License-Identifier: Apache-2.0
"""
Reloading
---------

Watch the files of the policy in force, and put the policy in force again when one has changed.
"""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kvmsr.errors import KvmsrError
from kvmsr.policy import Policy
from kvmsr.session.requests import Requests
from kvmsr.text import error_text

__all__ = ("Reloader",)

_PERIOD: Final = 0.5

_Stamp = tuple[int, int, int, int] | None
"""Device, inode, size and time of change in nanoseconds; None if there is no file."""


class Reloader:
    """
    Reloads the policy in force, in a thread of its own, until it is closed.

    A change of a file counts when the file has stayed the same for half a second, so that a file
    that is still being written is not read. If it is written while it is read, what was read does
    not count, and it is read again.

    :param requests: puts policies in force.
    :param say: shows a line to the user.
    """

    def __init__(self, requests: Requests, say: Callable[[str], None]) -> None:
        self._requests = requests
        self._say = say
        self._wake = threading.Event()
        self._asked = False
        self._closed = False
        self._policy = requests.policy
        self._seen = self._latest = _stamps(self._policy)
        self._thread = threading.Thread(target=self._watch, name="reload", daemon=True)
        self._thread.start()

    def reload(self) -> None:
        """Reload soon, whether or not a file has changed. A signal handler may call this."""
        self._asked = True
        self._wake.set()

    def close(self) -> None:
        """Stop watching."""
        self._closed = True
        self._wake.set()
        self._thread.join(_PERIOD)

    def _watch(self) -> None:
        while True:
            self._wake.wait(_PERIOD)
            self._wake.clear()
            if self._closed:
                return
            asked, self._asked = self._asked, False
            if asked or self._has_changed():
                self._reload()

    def _has_changed(self) -> bool:
        policy = self._requests.policy
        if policy is not self._policy:  # kvmsr ctl has put another one in force
            self._policy, self._seen = policy, _stamps(policy)
            self._latest = self._seen
            return False
        before, self._latest = self._latest, _stamps(policy)
        return self._latest == before and self._latest != self._seen

    def _reload(self) -> None:
        before = _stamps(self._requests.policy)
        try:
            policy, problem = self._requests.read_again(), ""
        except Exception as error:
            policy, problem = self._requests.policy, _problem(error)
        after = _stamps(policy)
        if any(before[file] != after[file] for file in before.keys() & after.keys()):
            return  # it differs from what has been seen, and will be read when it stays the same
        self._seen = self._latest = before
        if not problem:
            try:
                warnings = self._requests.put_in_force(policy)
            except Exception as error:
                problem = _problem(error)
        if problem:
            self._say(f"the policy was not reloaded: {problem}")
            return
        self._policy = self._requests.policy
        self._seen = self._latest = after
        self._say(f"reloaded {self._policy.source}")
        for warning in warnings:
            self._say(warning)


def _problem(error: Exception) -> str:
    return str(error) if isinstance(error, KvmsrError) else error_text(error)


def _stamps(policy: Policy) -> dict[str, _Stamp]:
    return {file: _stamp(file) for file in policy.files}


def _stamp(file: str) -> _Stamp:
    try:
        status = Path(file).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
