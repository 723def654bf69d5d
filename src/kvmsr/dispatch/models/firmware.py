# SPDX-License-Identifier: Apache-2.0
"""
Firmware's registers
--------------------

Registers that firmware leaves behind: microcode, IA32_FEATURE_CONTROL, and the count of SMIs.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from msgspec import Meta

from kvmsr.dispatch.models.base import RegisterModel
from kvmsr.policy import Access
from kvmsr.policy.registers import Field, Register
from kvmsr.policy.topology import Scope

__all__ = ("AmdMicrocode", "FeatureControl", "IntelMicrocode", "SmiCount")

_Revision = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]


class IntelMicrocode(RegisterModel):
    """
    The microcode of an Intel core: its revision, and the trigger that loads an update.

    Software writes 0 to IA32_BIOS_SIGN_ID, executes CPUID, which stores the revision there, and
    reads the MSR (SDM volume 3, 10.11.7). A model does not see CPUID, so a read returns the
    revision with or without it. The revision becomes *updated* once the guest triggers an update;
    the update itself is not examined.
    """

    class Parameters(RegisterModel.Parameters, frozen=True, kw_only=True):
        """Revisions, as /proc/cpuinfo shows them."""

        revision: _Revision = 0x1
        updated: _Revision | None = None

    scope = Scope.CORE

    trigger = Register("IA32_BIOS_UPDT_TRIG", "wo")
    signature = Register("IA32_BIOS_SIGN_ID")

    def read(self, register: Register, access: Access) -> int:
        """Return the revision, in bits 63:32."""
        given = self.parameters
        was = self.was_written(self.trigger, access._replace(index=self.trigger.indices[0]))
        return int(given.updated if was and given.updated is not None else given.revision) << 32

    def write(self, register: Register, access: Access) -> None:
        """Accept the 0 that software writes before CPUID, or the address of an update."""
        super().write(register, access)
        if register is self.trigger:
            self.note(f"the guest loads microcode from {access.value:#x} on vCPU {access.vcpu}")


class AmdMicrocode(RegisterModel):
    """
    The microcode of an AMD core: its patch level, and the register that loads a patch.

    (AMD PPR, Core::X86::Msr::PATCH_LEVEL: read-only; Linux's arch/x86/kernel/cpu/microcode/amd.c.)
    """

    class Parameters(RegisterModel.Parameters, frozen=True, kw_only=True):
        """Patch levels, as /proc/cpuinfo shows them; *updated* applies after a patch was loaded."""

        level: _Revision = 0x0100_0065
        updated: _Revision | None = None

    scope = Scope.CORE

    level = Register("IA32_BIOS_SIGN_ID", others="ro")
    loader = Register("MSR_AMD64_PATCH_LOADER", "wo")

    def read(self, register: Register, access: Access) -> int:
        """Return the patch level."""
        given = self.parameters
        was = self.was_written(self.loader, access._replace(index=self.loader.indices[0]))
        return int(given.updated if was and given.updated is not None else given.level)

    def write(self, register: Register, access: Access) -> None:
        """Accept the address of a patch."""
        super().write(register, access)
        if register is self.loader:
            self.note(f"the guest loads microcode from {access.value:#x} on vCPU {access.vcpu}")


class FeatureControl(RegisterModel):
    """
    IA32_FEATURE_CONTROL: the features that firmware allows, and the lock that lasts until reset.

    (Intel SDM volume 4, table 2-2, MSR 3AH.)
    """

    class Parameters(RegisterModel.Parameters, frozen=True, kw_only=True):
        """What firmware has set. Proper firmware leaves the register *locked*."""

        locked: bool = True
        vmx: bool = False
        vmx_in_smx: bool = False
        sgx: bool = False
        lmce: bool = False

    scope = Scope.CORE

    control = Register(
        "IA32_FEATURE_CONTROL", others="fault",
        lock=Field(0, "lock"), vmx_in_smx=Field(1), vmx=Field(2), senter=Field("8-15"),
        sgx_launch=Field(17), sgx=Field(18), lmce=Field(20),
    )  # fmt: skip

    def get(self, register: Register, access: Access) -> int:
        """Return the register's value: firmware's, until the guest writes another."""
        if self.was_written(register, access):
            return super().get(register, access)
        given = self.parameters
        return register.pack(
            lock=int(given.locked), vmx=int(given.vmx), vmx_in_smx=int(given.vmx_in_smx),
            sgx=int(given.sgx), lmce=int(given.lmce),
        )  # fmt: skip


class SmiCount(RegisterModel):
    """MSR_SMI_COUNT: the number of System Management Interrupts (SDM volume 4, MSR 34H)."""

    class Parameters(RegisterModel.Parameters, frozen=True, kw_only=True):
        """*count* is the number of SMIs before the guest began, *per_minute* those that follow."""

        count: _Revision = 0
        per_minute: Annotated[float, Meta(ge=0, le=1e6)] = 0.0

    scope = Scope.THREAD

    smis = Register("MSR_SMI_COUNT", "ro", count=Field("0-31"))

    def setup(self) -> None:
        """Start to count."""
        self._begin = self.now()

    def read(self, register: Register, access: Access) -> int:
        """Return the count."""
        minutes = (self.now() - self._begin) / 60e9
        count = self.parameters.count + int(minutes * self.parameters.per_minute)
        return register.pack(count=count & 0xFFFF_FFFF)

    def state(self) -> dict[str, Any]:
        """Return the registers, and the nanoseconds since it started to count."""
        return super().state() | {"elapsed": self.now() - self._begin}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue to count from there."""
        super().restore(state)
        self._begin = self.now() - state["elapsed"]
