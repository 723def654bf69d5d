# SPDX-License-Identifier: Apache-2.0
"""
The ticker
----------

The thread of a VM that watches the time while its vCPUs execute: when a timer is due it makes the
vCPU concerned come out. vCPUs that sleep look after timers themselves.
"""

import threading
import weakref
from typing import TYPE_CHECKING, Final

from kvmsr.backend.soft import signals

if TYPE_CHECKING:
    from kvmsr.backend.soft.vm import Vm

__all__ = ("Ticker",)

_AGAIN: Final = 0.001
_LONGEST: Final = 0.05


class Ticker(threading.Thread):
    """The thread; it ends with its VM."""

    def __init__(self, vm: "Vm") -> None:
        super().__init__(name="kvmsr-ticker", daemon=True)
        self._vm = weakref.ref(vm)
        self._changed = vm.changed
        self._armed: int | None = None
        self._waiting = False

    def is_late(self, deadline: int | None) -> bool:
        """Return whether the thread would wake too late for *deadline*; under the VM's lock."""
        return deadline is not None and (self._armed is None or deadline < self._armed)

    def run(self) -> None:
        """Watch, until the VM is closed or gone."""
        signals.hold()  # they are for the thread that waits for them
        with self._changed:
            while True:
                vm = self._vm()
                if vm is None or (vm.closed and not vm.active):
                    return
                pause = self._look(vm)
                del vm
                self._changed.wait(pause)

    def _look(self, vm: "Vm") -> float:
        """Do what is due, and return for how long nothing will be."""
        self._armed = None
        if not vm.active:
            return _LONGEST * 10
        vm.run_timers()
        again = vm.execution.contended
        for vcpu in vm.vcpus.values():
            # Once more: the first request may have met a store of the engine's own.
            # Nor does anybody tell of a signal.
            waits = vcpu.wanted or vm.execution.contended or vcpu.masked is not None
            if vcpu.cpu.running and waits:
                vcpu.cpu.interrupt()
                again = True
        deadline = vm.next_deadline()
        self._armed = deadline
        pause = _AGAIN if again else _LONGEST
        if deadline is None:
            return pause
        return min(pause, max(deadline - vm.clock.now(), 0) / 1e9)
