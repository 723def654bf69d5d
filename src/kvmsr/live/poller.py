# SPDX-License-Identifier: Apache-2.0
"""
Asking again and again
----------------------
"""

import threading
import time
from collections.abc import Callable
from typing import Any, Final

from kvmsr.errors import KvmsrError
from kvmsr.live.client import Ended, WatchedRun

__all__ = ("Poller",)

_PERIOD: Final = 0.4
_SHARE: Final = 10
"""The run has to be left alone for so many times as long as the last answer took."""


class Poller:
    """
    Asks a run in a thread of its own, until it has ended or this is closed.

    :param run: the run.
    :param answered: called with each answer.
    :param failed: called with why there was no answer; None if the run has ended.
    :ivar msr: the MSR to ask more about.
    """

    def __init__(
        self,
        run: WatchedRun,
        answered: Callable[[dict[str, Any]], object],
        failed: Callable[[str | None], object],
    ) -> None:
        self.msr: int | None = None
        self._run, self._answered, self._failed = run, answered, failed
        self._wake = threading.Event()
        self._closed = False
        threading.Thread(target=self._ask, name="poller", daemon=True).start()

    def wake(self) -> None:
        """Ask now."""
        self._wake.set()

    def close(self) -> None:
        """Ask no more."""
        self._closed = True
        self._wake.set()

    def _ask(self) -> None:
        while not self._closed:
            begun = time.monotonic()
            try:
                self._answered(self._run.watch(self.msr))
            except Ended:
                self._failed(None)
                return
            except KvmsrError as error:
                self._failed(str(error))
            took = time.monotonic() - begun
            self._wake.wait(max(_PERIOD - took, took * _SHARE))
            self._wake.clear()
