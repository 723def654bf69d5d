# SPDX-License-Identifier: Apache-2.0
"""A vCPU without a CPU: registers that a test sets, and a log of what the MSR path asked for."""

import ctypes
from collections import defaultdict
from dataclasses import replace

from kvmsr.abi.run import Run
from kvmsr.backend.soft.hyperv.partition import Partition
from kvmsr.backend.soft.hyperv.vcpu import HypervVcpu
from kvmsr.backend.soft.msr.cpuid import GuestCpuid
from kvmsr.backend.soft.msr.filter import MsrFilter
from kvmsr.backend.soft.msr.path import kvm_emulate_rdmsr, kvm_emulate_wrmsr
from kvmsr.backend.soft.msr.state import MsrState
from kvmsr.backend.soft.msr.vcpu import RAX, RCX, RDX, RIP
from kvmsr.backend.soft.profile import PROFILES

X = 0x474F4F00  # unknown to every KVM
EFER, LSTAR, TSC_AUX, TSC_DEADLINE, X2APIC_ICR = 0xC0000080, 0xC0000082, 0xC0000103, 0x6E0, 0x830
PAT = 0x277
INVAL, UNKNOWN, FILTER = 1, 2, 4
RDMSR, WRMSR = 29, 30
GP = (13, 0)
BASE = 0x1000  # where the MSR instruction stands
STALE = 0xDEAD_BEEF_0000_0001  # what user space left in the page, and what the upper halves hold


class Cpu:
    def __init__(self):
        self.regs = [0] * 17
        self.rflags = 0x2
        self.cpl, self.paging, self.long_code = 0, True, True
        self.held = defaultdict(int, {PAT: 0x0007_0406_0007_0406})

    def read_msr(self, index):
        return self.held[index]

    def write_msr(self, index, value):
        self.held[index] = value


class Lapic:
    """One that takes everything, in x2APIC mode or not."""

    def __init__(self, *, x2apic=True):
        self.apic_base, self.tsc_deadline, self.x2apic, self.written = 0xFEE00C00, 0, x2apic, []

    def x2apic_read(self, index):
        return index if self.x2apic else None

    def x2apic_write(self, index, value):
        if self.x2apic:
            self.written.append((index, value))
        return self.x2apic


class Clock:
    tsc_khz = 1_000_000

    def tsc(self):
        return 1_000_000

    def adjust_tsc(self, delta):
        pass

    def kvmclock(self):
        return 0, self.tsc()


class Vm:
    def __init__(self, profile):
        self.profile = profile
        self.user_space_msr_mask = INVAL | UNKNOWN | FILTER
        self.msr_filter = None
        self.guest_can_read_platform_info, self.irqchip_in_kernel = True, False
        self.hyperv = Partition()

    def has_quirk(self, quirk):
        return True

    def has_memory(self, gpa):
        return False

    def read_guest(self, gpa, size):
        return None

    def write_guest(self, gpa, data):
        return False


class Vcpu:
    """
    With mask 7 and the RIP at an MSR instruction.

    ``exceptions`` and ``skips`` are what was asked for; ``steps`` is what ``skipped`` says.
    """

    def __init__(self, profile="linux-6.18-amd", *, cpuid=(), lapic=None, **switches):
        self.id, self.vm = 0, Vm(replace(PROFILES[profile], **switches))
        self.cpu, self.msrs, self.cpuid, self.lapic = Cpu(), MsrState(), GuestCpuid(cpuid), lapic
        self.run, self.apic_base = Run(), 0xFEE00900
        self.has_run = self.enforce_pv_cpuid = False
        self.complete_emulation = None
        self.exceptions, self.skips, self.steps = [], [], True
        self.clock = Clock()
        self.vm.hyperv.clock = self.clock
        self.hyperv = HypervVcpu(self, self.vm.hyperv, 0, lambda: 0)
        self.msrs.reset(self.vm.profile)

    def queue_exception(self, vector, error_code):
        self.exceptions.append((vector, error_code))

    def skipped(self):
        self.skips.append((self.cpu.regs[RIP], self.cpu.rflags))
        return self.steps

    # What a test does

    def rdmsr(self, index=X, length=2, **kind):
        self.cpu.regs[RCX], self.cpu.regs[RIP] = index, self.cpu.regs[RIP] or BASE
        return kvm_emulate_rdmsr(self, length, **kind)

    def wrmsr(self, index=X, value=0, length=2, **kind):
        regs = self.cpu.regs
        regs[RCX], regs[RIP] = index, regs[RIP] or BASE
        regs[RAX], regs[RDX] = value & 0xFFFF_FFFF, value >> 32
        return kvm_emulate_wrmsr(self, length, **kind)

    def enter(self, *, error=0, data=None):
        """Come back from user space, as KVM_RUN does; return whether the guest goes on."""
        self.msr.error = error
        if data is not None:
            self.msr.data = data
        complete, self.complete_emulation = self.complete_emulation, None
        return complete is None or complete(self)

    @property
    def msr(self):
        return self.run.exit.msr

    @property
    def rip(self):
        return self.cpu.regs[RIP]

    def deny(self, *indices):
        """Have a filter that denies some MSRs, both ways."""
        self.vm.msr_filter = make_filter(*((3, index, b"\0") for index in indices))


def filter_bytes(*ranges, flags=0):
    """Return a struct kvm_msr_filter, and what reads its bitmaps; a range: flags, base, bitmap."""
    raw = flags.to_bytes(8, "little")
    memory = {}
    for number, (kind, base, bitmap, *count) in enumerate(ranges, 1):
        memory[number << 12] = bitmap
        nmsrs = count[0] if count else 8 * len(bitmap)
        raw += b"".join(part.to_bytes(4, "little") for part in (kind, nmsrs, base, 0))
        raw += (number << 12).to_bytes(8, "little")
    return raw.ljust(392, b"\0"), lambda address, size: memory[address].ljust(size, b"\0")


def make_filter(*ranges, flags=0):
    return MsrFilter.from_bytes(*filter_bytes(*ranges, flags=flags))


def soil(vcpu):
    """Fill the union with what another exit or user space may have left there."""
    ctypes.memset(ctypes.addressof(vcpu.run.exit), 0xA5, 256)
