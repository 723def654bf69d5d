# SPDX-License-Identifier: Apache-2.0
"""A vCPU that asks the handlers, and what tests of them need: memory, a TSC that moves, CPUID."""

import struct

from kvmsr.backend.soft.msr.handlers import handlers
from kvmsr.backend.soft.msr.result import MsrRet
from tests.backend.soft.msr import scripted
from tests.backend.soft.msr.scripted import Lapic, Vcpu

OK, INVALID, UNSUPPORTED = MsrRet.OK, MsrRet.INVALID, MsrRet.UNSUPPORTED
HOST = True
AMD_61, INTEL_61, NEWEST, PVM = "linux-6.1-amd", "linux-6.1-intel", "linux-6.18-amd", "pvm"
KVMS = (AMD_61, INTEL_61, NEWEST, PVM)
U64 = (1 << 64) - 1
PAGE = range(0x1000, 0x2000)

_BITS = {
    "x2apic": (1, "c", 21), "pdcm": (1, "c", 15), "tsc_adjust": (7, "b", 1),
    "flush_l1d": (7, "d", 28), "arch_capabilities": (7, "d", 29), "spec_ctrl": (7, "d", 26),
    "xsaves": (0xD, "a", 3), "xfd": (0xD, "a", 4), "osvw": (0x80000001, "c", 9),
    "nx": (0x80000001, "d", 20), "fxsr_opt": (0x80000001, "d", 25), "lm": (0x80000001, "d", 29),
    "pred_cmd": (0x80000008, "b", 12), "virt_ssbd": (0x80000008, "b", 25),
}  # fmt: skip


def cpuid(*features, vendor="AuthenticAMD", width=40, pv=None):
    """Return CPUID entries with some features, and, with *pv*, KVM's own feature leaf."""
    b, d, c = struct.unpack("<3I", vendor.encode("ascii"))
    leaves = {
        0: {"a": 0xD, "b": b, "c": c, "d": d},
        0x80000000: {"a": 0x80000008},
        0x80000008: {"a": width},
    }
    for name in features:
        leaf, register, bit = _BITS[name]
        registers = leaves.setdefault(leaf, {})
        registers[register] = registers.get(register, 0) | 1 << bit
    if pv is not None:
        b, c, d = struct.unpack("<3I", b"KVMKVMKVM\0\0\0")
        leaves |= {0x40000000: {"b": b, "c": c, "d": d}, 0x40000001: {"a": pv}}
    indices = {7: (0, 1), 0xD: (1, 1)}
    return tuple(
        (leaf, *indices.get(leaf, (0, 0)), *(registers.get(name, 0) for name in "abcd"))
        for leaf, registers in leaves.items()
    )


class Clock:
    """It counts when a test says so."""

    tsc_khz = 1_000_000

    def __init__(self):
        self.offset, self.cycles, self.nanoseconds = 0, 5_000, 7_000

    def tsc(self):
        return self.cycles + self.offset & U64

    def adjust_tsc(self, delta):
        self.offset += delta

    def kvmclock(self):
        return self.nanoseconds, self.tsc()


class Vm(scripted.Vm):
    """It has one page of memory."""

    def __init__(self, profile):
        super().__init__(profile)
        self.memory = bytearray(len(PAGE))

    def has_memory(self, gpa):
        return gpa in PAGE

    def write_guest(self, gpa, data):
        if gpa not in PAGE:
            return False
        at = gpa - PAGE.start
        self.memory[at : at + len(data)] = data
        return True


class HandlerVcpu(Vcpu):
    """Its MSRs are the handlers'. Its VM has a page of memory, and time stands still."""

    def __init__(self, profile=NEWEST, *features, cpuid_entries=None, lapic=None, **switches):
        entries = cpuid(*features) if features else ()
        entries = entries if cpuid_entries is None else cpuid_entries
        super().__init__(profile, cpuid=entries, lapic=lapic, **switches)
        self.clock, self.vm = Clock(), Vm(self.vm.profile)
        self.vm.irqchip_in_kernel = lapic is not None
        self.cpu.paging = False
        self._handlers = handlers(self.vm.profile.vendor)

    def read(self, index, host=False):
        handler = self._handlers.read.get(index)
        return (UNSUPPORTED, 0) if handler is None else handler(self, index, host)

    def write(self, index, value, host=False):
        handler = self._handlers.write.get(index)
        return UNSUPPORTED if handler is None else handler(self, index, value, host)

    def value(self, index):
        """Read as the host; it must work."""
        result, value = self.read(index, HOST)
        assert result == OK
        return value


def with_lapic(profile=NEWEST, **kind):
    return HandlerVcpu(profile, lapic=Lapic(), **kind)
