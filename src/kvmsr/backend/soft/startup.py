# SPDX-License-Identifier: Apache-2.0
"""
RESET, INIT and start-up IPIs
-----------------------------

How a vCPU begins (kvm_vcpu_reset and kvm_apic_accept_events of the kernel).
"""

from dataclasses import replace
from typing import Final

from kvmsr.abi import Mp
from kvmsr.abi import cpu as abi
from kvmsr.backend.soft.cpu import registers
from kvmsr.backend.soft.cpu.vmcb import SegmentState, StartState
from kvmsr.backend.soft.vcpu import Vcpu

__all__ = ("accept_events", "reset")

_RIP, _RDX = 16, 2
_CR0_RESET: Final = 0x6000_0010
_RESET_RDX: Final = 0x600
_RESET_CS: Final = SegmentState(0xF000, 0xFFFF_0000, 0xFFFF, 0x9B)


def reset(vcpu: Vcpu) -> None:
    """Bring a CPU into its state after RESET or INIT (SDM volume 3, table 10-1)."""
    engine = vcpu.cpu
    amd = vcpu.vm.profile.vendor == "amd"  # svm_vcpu_reset leaves "accessed" and TR's size out
    accessed = int(not amd)
    cs = replace(_RESET_CS, attributes=_RESET_CS.attributes & ~1 | accessed)
    ss = SegmentState(0, 0, 0xFFFF, 0x92 | accessed)
    engine.load(StartState(cs=cs, ss=ss, cr0=_CR0_RESET, rip=0xFFF0))
    sregs = abi.Sregs()
    registers.get_sregs(engine, sregs)
    for name, kind, s in (
        ("fs", 3, 1),
        ("gs", 3, 1),
        ("ldt", 2, 0),
        ("tr", 3 if amd else 11, 0),
    ):
        setattr(sregs, name, abi.Segment(limit=0xFFFF, type=kind, present=1, s=s))
    registers.set_hidden(engine, sregs)
    for number in range(16):
        engine.regs[number] = 0
    engine.regs[_RDX] = _RESET_RDX
    vcpu.cr8 = 0
    vcpu.debugging.reset()
    vcpu.events.reset()
    vcpu.msrs.reset(vcpu.vm.profile)


def accept_events(vcpu: Vcpu) -> None:
    """Do the INIT and the start-up IPI that wait for a vCPU; under the VM's lock."""
    if vcpu.init_pending:
        vcpu.init_pending = False
        reset(vcpu)
        if vcpu.lapic is not None:
            vcpu.lapic.reset(init=True)
        is_bsp = vcpu.id == vcpu.vm.boot_cpu
        vcpu.mp_state = Mp.RUNNABLE if is_bsp else Mp.INIT_RECEIVED
    if vcpu.sipi_pending:
        vcpu.sipi_pending = False
        if vcpu.mp_state == Mp.INIT_RECEIVED:
            _start_at(vcpu, vcpu.sipi_vector)
            vcpu.mp_state = Mp.RUNNABLE


def _start_at(vcpu: Vcpu, page: int) -> None:
    """Begin in real mode, at the start of a page."""
    sregs = abi.Sregs()
    registers.get_sregs(vcpu.cpu, sregs)
    sregs.cs.selector, sregs.cs.base = page << 8, page << 12
    registers.set_sregs(vcpu.cpu, sregs)
    vcpu.cpu.regs[_RIP] = 0
