# SPDX-License-Identifier: Apache-2.0
"""
Initial vCPU state
------------------

The registers with which the first vCPU starts, in real, protected or long mode.
"""

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from kvmsr.abi import cpu
from kvmsr.kvm import Vcpu, Vm
from kvmsr.machine.layout import GDT, PAGE_TABLES

__all__ = ("Mode", "Start", "apply_start", "enable_mtrrs")

_CODE: Final = 0x10
_DATA: Final = 0x18
# Null, unused, code and data: Linux's boot protocol wants the last two at 0x10 and 0x18.
_GDT_32: Final = (0, 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
_GDT_64: Final = (0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)

_CR0_PE: Final = 1 << 0
_CR0_ET: Final = 1 << 4
_CR0_NE: Final = 1 << 5
_CR0_PG: Final = 1 << 31
_CR4_PAE: Final = 1 << 5
_EFER_LME_LMA: Final = 1 << 8 | 1 << 10
_GIB: Final = 1 << 30
_MTRR_DEF_TYPE: Final = 0x2FF
_MTRR_ENABLED_WRITE_BACK: Final = 1 << 11 | 6
_MAPPED_GIB: Final = 4


class Mode(enum.IntEnum):
    """CPU modes, by the width of their code in bits."""

    REAL = 16
    PROTECTED = 32
    LONG = 64


@dataclass(frozen=True, slots=True)
class Start:
    """
    How the first vCPU starts.

    :ivar mode: 16 (real), 32 (protected, flat, no paging) or 64 (long, with 4 GiB identity-mapped),
        or None to start at the reset vector.
    :ivar rip: the initial RIP; in real mode CS is 0.
    :ivar registers: general-purpose registers by name; all others are 0.
    :ivar gdt: whether to write a GDT with the initial segments to memory, for guests that load
        segment registers before they set up a GDT of their own.
    """

    mode: int | None
    rip: int = 0
    registers: dict[str, int] = field(default_factory=dict)
    gdt: bool = True


def apply_start(vm: Vm, vcpu: Vcpu, start: Start) -> None:
    """Put *vcpu* into the state *start*, and the tables that it needs into memory."""
    if start.mode is None:
        return  # a new vCPU is at the reset vector
    sregs = vcpu.get_sregs()
    if start.mode == Mode.REAL:
        sregs.cs.base = 0
        sregs.cs.selector = 0
    else:
        _flat(sregs, start.mode)
        if start.gdt:
            _put_gdt(vm, sregs, _GDT_32 if start.mode == Mode.PROTECTED else _GDT_64)
        sregs.cr0 = _CR0_PE | _CR0_ET | _CR0_NE
        if start.mode == Mode.LONG:
            sregs.cr3 = _identity_map(vm)
            sregs.cr4 = _CR4_PAE
            sregs.cr0 |= _CR0_PG
            sregs.efer = _EFER_LME_LMA
    vcpu.set_sregs(sregs)
    vcpu.set_regs(cpu.Regs(rip=start.rip, rflags=2, **start.registers))


def enable_mtrrs(vcpus: Iterable[Vcpu]) -> None:
    """
    Make memory write-back by default, as firmware leaves it.

    With MTRRs disabled, Linux would not use PAT either.
    """
    for vcpu in vcpus:
        vcpu.set_msrs({_MTRR_DEF_TYPE: _MTRR_ENABLED_WRITE_BACK})


def _put_gdt(vm: Vm, sregs: cpu.Sregs, gdt: tuple[int, ...]) -> None:
    vm.memory_at(GDT, 8 * len(gdt))[:] = struct.pack(f"<{len(gdt)}Q", *gdt)
    sregs.gdt.base = GDT
    sregs.gdt.limit = 8 * len(gdt) - 1


def _flat(sregs: cpu.Sregs, mode: int) -> None:
    sregs.idt.base = sregs.idt.limit = 0
    is_long = mode == Mode.LONG
    sregs.cs = cpu.Segment(
        0, 0xFFFFFFFF, _CODE, 0xB, 1, 0, db=int(not is_long), s=1, l=int(is_long), g=1
    )
    data = cpu.Segment(0, 0xFFFFFFFF, _DATA, 0x3, 1, 0, db=1, s=1, g=1)
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data


def _identity_map(vm: Vm) -> int:
    """Identity-map the first 4 GiB with 2 MiB pages, and return the value for CR3."""
    present_writable, large = 3, 1 << 7
    pdpt, directories = PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000
    vm.memory_at(PAGE_TABLES, 0x1000)[:] = struct.pack("<Q4088x", pdpt | present_writable)
    pointers = [directories + 0x1000 * n | present_writable for n in range(_MAPPED_GIB)]
    vm.memory_at(pdpt, 0x1000)[:] = struct.pack(f"<{_MAPPED_GIB}Q", *pointers).ljust(0x1000, b"\0")
    pages = [page << 21 | present_writable | large for page in range(_MAPPED_GIB * _GIB >> 21)]
    size = 8 * len(pages)
    vm.memory_at(directories, size)[:] = struct.pack(f"<{len(pages)}Q", *pages)
    return PAGE_TABLES
