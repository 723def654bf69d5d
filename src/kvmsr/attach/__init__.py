# SPDX-License-Identifier: Apache-2.0
"""
Attaching to other VMMs
-----------------------

``kvmsr exec`` preloads a library into a VMM, and the library answers the guest's MSR accesses under
a plan. This package is the other side: it starts the VMM, answers what needs Python, and reports
what happened.
"""

from kvmsr.attach.controller import Controller
from kvmsr.attach.elf import find_vmm
from kvmsr.attach.soft import SoftKvm

__all__ = ("Controller", "SoftKvm", "find_vmm")
