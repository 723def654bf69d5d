# SPDX-License-Identifier: Apache-2.0
"""
The partition
-------------

What Hyper-V's MSRs hold for a whole VM (struct kvm_hv).
"""

from kvmsr.backend.soft.hyperv.reference import GuestMemory, PageClock, ReferenceTsc

__all__ = ("Debugger", "Partition")


class Debugger:
    """The synthetic debugger's registers (struct kvm_hv_syndbg)."""

    def __init__(self) -> None:
        self.control = self.status = self.options = 0
        self.send_page = self.recv_page = self.pending_page = 0


class Partition:
    """
    What a VM has.

    :ivar clock: the first vCPU's; None: there is none yet.
    :ivar guest_os_id: HV_X64_MSR_GUEST_OS_ID; 0: the guest makes no hypercalls.
    :ivar tsc_emulation: HV_X64_MSR_TSC_EMULATION_CONTROL.
    :ivar invariant_control: HV_X64_MSR_TSC_INVARIANT_CONTROL.
    """

    def __init__(self) -> None:
        self.clock: PageClock | None = None
        self.guest_os_id = self.hypercall = 0
        self.reference = ReferenceTsc()
        self.crash_control, self.crash = 0, [0] * 5
        self.reenlightenment = self.tsc_emulation = self.tsc_emulation_status = 0
        self.invariant_control = 0
        self.debugger = Debugger()

    def clock_changed(self) -> None:
        """kvmclock was set (kvm_hv_request_tsc_page_update)."""
        self.reference.clock_changed(emulates=bool(self.tsc_emulation))

    def update(self, memory: GuestMemory) -> None:
        """Write the reference TSC page, if that is due."""
        if self.reference.is_due and self.clock is not None:
            self.reference.update(memory, self.clock, emulates=bool(self.tsc_emulation))

    def time(self) -> int:
        """Return partition time, in units of 100 nanoseconds."""
        return self.reference.time(self.clock) if self.clock is not None else 0
