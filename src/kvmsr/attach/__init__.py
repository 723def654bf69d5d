# SPDX-License-Identifier: Apache-2.0
"""
Attaching to other VMMs
-----------------------

``kvmsr exec``: a library is preloaded into a VMM and answers its guest's MSR accesses by a plan;
this is the side that starts the VMM, does what takes Python, and reports what happened.
"""

from kvmsr.attach.control import ask
from kvmsr.attach.controller import Controller
from kvmsr.attach.elf import find_vmm

__all__ = ("Controller", "ask", "find_vmm")
