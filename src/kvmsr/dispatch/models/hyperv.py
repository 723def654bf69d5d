# SPDX-License-Identifier: Apache-2.0
"""
Hyper-V
-------

The registers in which a crashing guest reports why.

(Hyper-V TLFS, "Guest Crash Enlightenment Interface": HV_X64_MSR_CRASH_P0 to P4 and CRASH_CTL. The
guest uses them if bit 10 of CPUID leaf 0x40000003's EDX is set.)
"""

from typing import Final

from kvmsr.dispatch.models.base import RegisterModel
from kvmsr.policy import Access
from kvmsr.policy.registers import Register
from kvmsr.policy.topology import Scope

__all__ = ("Crash",)

_NOTIFY, _MESSAGE = 1 << 63, 1 << 62
_LONGEST: Final = 4096


class Crash(RegisterModel):
    """
    Notes the stop code and parameters of a Windows or Linux guest that crashes.

    With CRASH_MESSAGE, the last two parameters are the address and the length of a text in the
    guest's memory. It is part of the note if the memory can be read.
    """

    scope = Scope.VM

    parameters_ = Register("0x40000100-0x40000104")
    control = Register("HV_X64_MSR_CRASH_CTL")

    def read(self, register: Register, access: Access) -> int:
        """Return a parameter, or the supported notifications."""
        if register is self.control:
            return _NOTIFY | _MESSAGE
        return super().read(register, access)

    def write(self, register: Register, access: Access) -> None:
        """Keep a parameter, or note the crash when the guest notifies."""
        super().write(register, access)
        if register is self.control and access.value & _NOTIFY:
            self._note_crash(access)

    def _note_crash(self, access: Access) -> None:
        codes = [
            self.get(self.parameters_, access._replace(index=index))
            for index in self.parameters_.indices
        ]
        text = f"the guest crashed on vCPU {access.vcpu}: stop code {codes[0]:#x}"
        if access.value & _MESSAGE:
            text += ", parameters " + ", ".join(f"{code:#x}" for code in codes[1:3])
            text += f": {self._message(codes[3], codes[4])}"
        else:
            text += ", parameters " + ", ".join(f"{code:#x}" for code in codes[1:])
        self.note(text)

    def _message(self, address: int, length: int) -> str:
        data = self.site.memory(address, min(length, _LONGEST))
        if data is None:
            return f"a message of {length} bytes at {address:#x}"
        return data.decode("utf-8", "replace").strip("\0 \n")
