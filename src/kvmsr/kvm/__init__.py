# SPDX-License-Identifier: Apache-2.0
"""
KVM handles
-----------

KVM's three levels as typed handles over any backend: :class:`Kvm`, :class:`Vm`, :class:`Vcpu`.
One method is one ioctl; an exit is a class of :mod:`kvmsr.kvm.exits`.
"""

from kvmsr.kvm import exits
from kvmsr.kvm.cpuid import CpuidEntry, CpuidTable
from kvmsr.kvm.stats import Stat
from kvmsr.kvm.system import Kvm
from kvmsr.kvm.vcpu import Vcpu
from kvmsr.kvm.vm import MsrFilterRange, Vm

__all__ = ("CpuidEntry", "CpuidTable", "Kvm", "MsrFilterRange", "Stat", "Vcpu", "Vm", "exits")
