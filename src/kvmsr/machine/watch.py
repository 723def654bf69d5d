# SPDX-License-Identifier: Apache-2.0
"""
Watching a run
--------------

Waits for the end of a run, and ends it if time is over or the guest has halted for good.
"""

import threading
import time
from collections.abc import Sequence
from typing import Final

from kvmsr.machine.vcpu import Runner, VcpuThread
from kvmsr.session import End, EndKind
from kvmsr.session.result import TIMEOUT

__all__ = ("Watch",)

_SHORTEST: Final = 0.02
_LONGEST: Final = 0.5


class Watch:
    """
    The watch over a run.

    :ivar news: set when there is something to see: the run is over, or every vCPU may be asleep.
    """

    def __init__(self) -> None:
        self.news = threading.Event()

    def wait(self, runner: Runner, threads: Sequence[VcpuThread], timeout: float | None) -> None:
        """
        Wait for the end of the run, and end it if the guest has halted for good.

        With an in-kernel interrupt controller, a vCPU that halts for good never returns from
        KVM_RUN. So vCPUs that have not exited for a while are kicked, and each then finds out
        whether only another vCPU can wake it. A vCPU may be woken just after it has found that, so
        all of them have to be asleep twice in a row, without an exit in between. The soft backend
        interrupts KVM_RUN by itself when nothing can wake a vCPU any more: then nobody has to wait
        for the next kick.

        :param timeout: seconds from now after which the run ends, or None.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = _SHORTEST
        seen = [-1] * len(threads)
        asleep = 0
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                runner.end(End(EndKind.TIMEOUT, TIMEOUT, f"{timeout:g} seconds are over"))
                return
            self.news.wait(pause if left is None else min(pause, left))
            self.news.clear()
            if runner.over:
                return
            exits = [thread.exits for thread in threads]
            all_asleep = exits == seen and all(thread.asleep for thread in threads)
            asleep = asleep + 1 if all_asleep else 0
            if asleep == 2:
                detail = "every vCPU has halted and nothing can wake it"
                runner.end(End(EndKind.HALT, 0, detail))
                return
            for thread, before in zip(threads, seen, strict=True):
                was_asleep, thread.asleep = thread.asleep, False
                if was_asleep or thread.exits == before:
                    thread.vcpu.kick()
            seen = exits
            pause = min(pause * 2, _LONGEST)
