# SPDX-License-Identifier: Apache-2.0
"""
The log of a run
----------------

Pass log lines about accesses on. A log that fails must not end the run, and its silence must not be
mistaken for "nothing happened", so the failure becomes a note.
"""

import threading

from kvmsr.dispatch import Outcome, Sink
from kvmsr.errors import KvmsrError
from kvmsr.policy import Access
from kvmsr.text import error_text

__all__ = ("RunLog",)


class RunLog:
    """
    Passes log lines on until that fails. Any thread may call it.

    :param sink: receives the log lines.
    :ivar notes: one line about the failure; empty if there was none.
    """

    def __init__(self, sink: Sink) -> None:
        self.notes: list[str] = []
        self._sink = sink
        self._failing = threading.Lock()

    def __call__(self, access: Access, outcome: Outcome, line: str) -> None:
        """Log an access, unless the log has failed."""
        if self.notes:
            return
        try:
            self._sink(access, outcome, line)
        except Exception as error:  # a caller's sink may raise anything
            with self._failing:
                if not self.notes:
                    why = str(error) if isinstance(error, KvmsrError) else error_text(error)
                    self.notes.append(f"the log failed, later accesses are not in it: {why}")
