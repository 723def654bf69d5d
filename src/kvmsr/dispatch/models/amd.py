# SPDX-License-Identifier: Apache-2.0
"""
AMD
---

P-states, and the configuration registers that firmware and kernels touch while they boot.

(AMD PPR of family 17h, Core::X86::Msr: PStateCurLim, PStateCtl, PStateStat, PStateDef, HWCR.)
"""

from typing import Annotated, Final

from msgspec import Meta

from kvmsr.dispatch.models.base import RegisterModel
from kvmsr.policy import Access, Fault
from kvmsr.policy.registers import Field, Register
from kvmsr.policy.topology import Scope

__all__ = ("AmdBoot", "AmdPstates")

_STEP: Final = 25  # MHz per frequency ID, at a divisor of 1
_ONE: Final = 8  # the divisor ID that means 1


class AmdPstates(RegisterModel):
    """
    The P-states of an AMD core, the fastest first.

    The state that the guest chooses shows in the status register, and has no other effect.
    """

    class Parameters(RegisterModel.Parameters, frozen=True, kw_only=True):
        """*mhz* lists the frequencies of P0, P1 and so on, in MHz: multiples of 25, up to 6375."""

        mhz: Annotated[
            tuple[Annotated[int, Meta(ge=_STEP, le=6375)], ...], Meta(min_length=1, max_length=8)
        ] = (3000, 2200, 1500)

        def __post_init__(self) -> None:
            if any(mhz % _STEP for mhz in self.mhz):
                raise ValueError(f"the mhz of a P-state must be a multiple of {_STEP}")

    scope = Scope.CORE

    limit = Register("MSR_AMD_PSTATE_CUR_LIMIT", "ro", current=Field("0-2"), slowest=Field("4-6"))
    control = Register("MSR_AMD_PERF_CTL", others="fault", state=Field("0-2"))
    status = Register("MSR_AMD_PERF_STATUS", "ro", state=Field("0-2"))
    definitions = Register(
        "0xc0010064-0xc001006b",
        frequency=Field("0-7"), divisor=Field("8-13"), voltage=Field("14-21"), enabled=Field(63),
    )  # fmt: skip

    def read(self, register: Register, access: Access) -> int:
        """Return the limits, the current state, or a state's definition."""
        mhz = self.parameters.mhz
        if register is self.limit:
            return register.pack(slowest=len(mhz) - 1)
        if register is self.status:
            return self.get(self.control, access._replace(index=self.control.indices[0]))
        if register is self.definitions and not self.was_written(register, access):
            number = register.number(access.index)
            if number >= len(mhz):
                return 0
            return register.pack(frequency=mhz[number] // _STEP, divisor=_ONE, enabled=1)
        return super().read(register, access)

    def write(self, register: Register, access: Access) -> None:
        """Choose a state; a number beyond the slowest one chooses the slowest."""
        super().write(register, access)
        if register is self.control:
            slowest = len(self.parameters.mhz) - 1
            self.set(register, access, min(access.value, slowest))


class AmdBoot(RegisterModel):
    """
    Configuration registers in which firmware and kernels change single bits.

    HWCR (bit 24: the TSC counts at P0's frequency), NB_CFG, INT_PENDING_MSG and DE_CFG keep what is
    written, without any effect.
    """

    class Parameters(RegisterModel.Parameters, frozen=True, kw_only=True):
        """*locked_smm* sets HWCR's SmmLock bit, which then cannot be cleared."""

        locked_smm: bool = True

    scope = Scope.PACKAGE

    hwcr = Register(
        "MSR_K7_HWCR", scope="core", smm_lock=Field(0, "ro"), tsc_at_p0=Field(24, reset=1)
    )
    nb_cfg = Register("MSR_AMD64_NB_CFG")
    int_pending = Register("MSR_K8_INT_PENDING_MSG")
    de_cfg = Register("MSR_AMD64_DE_CFG", scope="core", serializing_lfence=Field(1, reset=1))

    def get(self, register: Register, access: Access) -> int:
        """Return the register's value."""
        value = super().get(register, access)
        return value | int(self.parameters.locked_smm) if register is self.hwcr else value

    def write(self, register: Register, access: Access) -> None:
        """Keep the value; DE_CFG has no upper half, and faults if one is written."""
        if register is self.de_cfg and access.value >> 32:
            raise Fault
        super().write(register, access)
