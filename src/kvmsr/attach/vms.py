# SPDX-License-Identifier: Apache-2.0
"""
The VMs of a run
----------------

Which processes have created VMs, what those VMs have accessed, and which were not under the whole
policy. All of that is what the VMMs say, and may be nonsense.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kvmsr.native import ffi, lib
from kvmsr.native.block import Block
from kvmsr.session import VmReport
from kvmsr.text import counted, one_line

__all__ = ("Vms", "error_name")

_MOST: Final = 1024
_MAX_ERRNO: Final = 4096


class Vms:
    """
    Keeps a report about each VM, also when another VM has taken over its record.

    :param block: the shared memory.
    """

    def __init__(self, block: Block) -> None:
        self._block = block
        self._reports: dict[tuple[int, int], VmReport] = {}

    def look(self) -> None:
        """Take note of VMs, and release records that processes left behind if they are needed."""
        exits: dict[int, list[int]] = {}  # by VM, those of each vCPU
        for vcpu in self._block.vcpus():
            if vcpu.taken == lib.KVMSR_TAKEN:
                exits.setdefault(vcpu.vm, []).append(vcpu.exits)
        for number, vm in self._block.vms():
            key = number, vm.serial
            if key in self._reports or len(self._reports) < _MOST:
                self._reports[key] = _report(vm, exits.get(number, []), self._reports.get(key))
        if self._block.raw.n_vms >= lib.KVMSR_MAX_VMS:
            for _, vm in self._block.vms():
                if vm.taken == lib.KVMSR_TAKEN and _is_gone(vm.pid):
                    lib.kvmsr_free_vm(vm)
        if self._block.n_vcpus >= self._block.max_vcpus:
            for vcpu in self._block.vcpus():
                if vcpu.taken == lib.KVMSR_TAKEN and _is_gone(vcpu.pid):
                    lib.kvmsr_free_vcpu(self._block.raw, vcpu)

    def reports(self) -> tuple[VmReport, ...]:
        """Return the reports, in the order in which the VMs were first seen."""
        return tuple(self._reports.values())

    def losses(self) -> Iterator[str]:
        """Yield a line about each VM that was not under the whole policy."""
        return (loss for report in self.reports() for loss in report.losses)


def _report(vm: Any, exits: list[int], before: VmReport | None) -> VmReport:
    """
    Return the report about a VM.

    :param exits: the number of accesses of each of its vCPUs.
    :param before: the last report.
    """
    process = one_line(bytes(ffi.buffer(vm.name)).partition(b"\0")[0].decode(errors="replace"))
    pid = vm.pid
    return VmReport(
        pid=pid,
        process=process,
        vcpus=max(len(exits), before.vcpus if before else 0),
        accesses=vm.exits + sum(exits),
        resets=vm.resets,
        losses=tuple(_losses(f"{process} ({pid})", vm)),
    )


def _losses(name: str, vm: Any) -> Iterator[str]:
    failed, lost_ranges = vm.failed, vm.lost_ranges
    if failed:
        yield f"{name}: KVM refused the policy for its VM: {error_name(failed)}"
    if vm.unserved:
        yield f"{name}: its VM was not under the policy: it has too many vCPUs"
    elif lost_ranges:
        ranges = counted(lost_ranges, "filter range")
        yield (
            f"{name}: {ranges} of the policy found no room beside the VMM's own: MSRs in them were"
            " left to KVM"
        )


def error_name(number: int) -> str:
    """Return what an errno means; *number* may be any number."""
    return os.strerror(number) if number < _MAX_ERRNO else f"error {number}"


def _is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()
