# SPDX-License-Identifier: Apache-2.0
"""
The world of one item
---------------------

What an item is given: a KVM, what to expect of it, and virtual machines of its own that end with
it. A watchdog kicks the vCPUs when the item's time is over, so nothing can hang.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from kvmsr.abi import MsrExitReason, MsrFilterFlag, address_of, buffer, ioctls, vm
from kvmsr.backend import Backend, Memory
from kvmsr.errors import KvmsrError
from kvmsr.kvm import CpuidEntry, CpuidTable, Kvm, MsrFilterRange, Vm
from tests.conformance import guest
from tests.conformance.kernel import Kernel
from tests.conformance.vcpu import Cpu

__all__ = ("ALL", "READ", "WRITE", "World", "X", "deny", "rule", "set_filter", "vendor", "without")

X: Final = 0x474F4F00
"""An MSR that is unknown to every KVM."""
ALL: Final = 7
READ: Final = MsrFilterFlag.READ
WRITE: Final = MsrFilterFlag.WRITE
MOST_MSRS: Final = 0x3000
"""How many MSRs a filter range may cover."""
PATIENCE: Final = 30.0
"""Seconds that an item may take; it takes milliseconds."""

_VENDORS: Final = {"amd": b"AuthenticAMD", "intel": b"GenuineIntel"}


class World:
    """
    A KVM and the virtual machines of one item.

    :ivar kernel: what to expect of this KVM.
    :ivar switched: gives, as a context, another world on the same kernel with module parameters
        changed; raises NotApplicable where they may not be.
    """

    def __init__(self, backend: Backend, kernel: Kernel, switched: Callable[..., Any]) -> None:
        self.backend = backend
        self.kernel = kernel
        self.switched = switched
        self.kvm = Kvm(backend)
        self.expired = False
        self._opened: list[Any] = []
        self._cpus: list[Cpu] = []

    def vm(self) -> Vm:
        """Create a VM without memory."""
        made = self.kvm.create_vm()
        self._opened.append(made)
        return made

    def cpus(
        self,
        count: int,
        mode: str = "long",
        *,
        mask: int | None = ALL,
        irqchip: bool = False,
        cpuid: CpuidTable | None = None,
        prepare: Callable[[Vm], object] | None = None,
    ) -> list[Cpu]:
        """
        Create a VM with memory, tables and *count* vCPUs.

        :param mask: for KVM_CAP_X86_USER_SPACE_MSR; None leaves it as a VM is born.
        :param cpuid: for KVM_SET_CPUID2; by default it is not called.
        :param prepare: what to do with the VM before it has vCPUs.
        """
        machine = self.vm()
        memory = Memory(guest.MEMORY)
        self._opened.append(memory)
        guest.prepare_memory(memory)
        machine.set_user_memory_region(0, 0, memory)
        if prepare is not None:
            prepare(machine)
        if irqchip:
            machine.create_irqchip()
        if mask is not None:
            machine.enable_user_space_msr(MsrExitReason(mask))
        return [self._cpu(machine, memory, n, mode, cpuid) for n in range(count)]

    def cpu(self, mode: str = "long", **options: Any) -> Cpu:
        """Create a VM with one vCPU; the options are those of :meth:`cpus`."""
        return self.cpus(1, mode, **options)[0]

    def another_vcpu(self, like: Cpu) -> Cpu:
        """Create a vCPU in a VM of its own that has the same memory as *like*'s."""
        machine = self.vm()
        machine.set_user_memory_region(0, 0, like.memory)
        machine.enable_user_space_msr(MsrExitReason(ALL))
        return self._cpu(machine, like.memory, 0, like.mode, None)

    def _cpu(
        self, machine: Vm, memory: Memory, number: int, mode: str, cpuid: CpuidTable | None
    ) -> Cpu:
        vcpu = machine.create_vcpu(number)
        self._opened.append(vcpu)
        if cpuid is not None:
            vcpu.set_cpuid2(cpuid)
        mapping = self.backend.mmap(vcpu.fd, self.kvm.vcpu_mmap_size())
        made = Cpu(
            machine,
            vcpu,
            memory,
            memoryview(mapping).cast("B"),
            mode=mode,
            prefix=self.kernel.prefix,
            tells_reason="reason" not in self.kernel.lacks,
            expired=lambda: self.expired,
        )
        self._cpus.append(made)
        return made

    @property
    def cpuid(self) -> CpuidTable:
        """The CPUID that this KVM supports."""
        return self.kvm.get_supported_cpuid()

    @contextmanager
    def watched(self, seconds: float = PATIENCE) -> Iterator[None]:
        """Kick all vCPUs once *seconds* are over, again and again until the block ends."""
        over = threading.Event()

        def watch() -> None:
            if over.wait(seconds):
                return
            self.expired = True
            while not over.wait(0.05):
                for made in list(self._cpus):
                    try:
                        made.vcpu.kick()
                    except KvmsrError:  # it has been closed
                        pass

        watchdog = threading.Thread(target=watch, daemon=True)
        watchdog.start()
        try:
            yield
        finally:
            over.set()
            watchdog.join()

    def close(self) -> None:
        """End all that was created, the youngest first."""
        for made in self._cpus:
            made.page.release()
        for opened in reversed(self._opened):
            opened.close()
        self.kvm.close()


# Filters


def rule(base: int, nmsrs: int, allowed: int = 0, flags: int = READ | WRITE) -> MsrFilterRange:
    """Return a filter range whose bits are those of *allowed*, lowest first."""
    size = (nmsrs + 7) // 8
    return MsrFilterRange(base, nmsrs, MsrFilterFlag(flags), allowed.to_bytes(size, "little"))


def deny(*indices: int, flags: int = READ | WRITE) -> list[MsrFilterRange]:
    """Return the ranges that deny single MSRs."""
    return [rule(index, 1, flags=flags) for index in indices]


def set_filter(machine: Vm, flags: int, *ranges: tuple[int, int, int, int | bytes]) -> int:
    """
    Do KVM_X86_SET_MSR_FILTER with any content and return 0 or the errno.

    :param ranges: flags, number of MSRs, base, and bitmap; the latter as bytes or as an address.
    """
    request = vm.MsrFilter(flags=flags)
    keep = []
    for slot, (slot.flags, slot.nmsrs, slot.base, bitmap) in zip(
        request.ranges, ranges, strict=False
    ):
        if isinstance(bitmap, bytes):
            # KVM looks at the number first; a bitmap for one far too large need not be there.
            covered = min(max(slot.nmsrs, 1), MOST_MSRS + 1)
            keep.append(buffer((covered + 63) // 64 * 8, bitmap))
            bitmap = address_of(keep[-1])
        slot.bitmap = bitmap
    try:
        machine.raw_ioctl(ioctls.KVM_X86_SET_MSR_FILTER, request)
    except OSError as error:
        return error.errno or 0
    return 0


# CPUID


def vendor(table: CpuidTable, name: str) -> CpuidTable:
    """Return *table* with the vendor string of *name*: ``amd`` or ``intel``."""
    text = _VENDORS[name]
    ebx, edx, ecx = (int.from_bytes(text[at : at + 4], "little") for at in (0, 4, 8))

    def change(entry: CpuidEntry) -> CpuidEntry:
        return entry if entry.function else replace(entry, ebx=ebx, ecx=ecx, edx=edx)

    return table.replace(change)


def without(table: CpuidTable, function: int, register: str, bits: int) -> CpuidTable:
    """Return *table* with *bits* of one leaf's *register* cleared."""

    def change(entry: CpuidEntry) -> CpuidEntry:
        if entry.function != function:
            return entry
        return replace(entry, **{register: getattr(entry, register) & ~bits})

    return table.replace(change)
