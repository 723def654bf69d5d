# SPDX-License-Identifier: Apache-2.0
"""
Machine check
-------------

Banks that report hardware errors, and errors to inject into them.

(Intel SDM volume 3, chapter 16, banks in 16.3.2; AMD APM volume 2, chapter 9.)
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from kvmsr.dispatch.models.base import RegisterModel
from kvmsr.policy import Access, Fault
from kvmsr.policy.registers import Field, Register
from kvmsr.policy.topology import Scope

__all__ = ("MachineCheck",)

_BANKS: Final = 32
_U64 = Annotated[int, Meta(ge=0)]
_VALID, _OVERFLOW = 1 << 63, 1 << 62
_CTL, _STATUS, _ADDR, _MISC = range(4)


class _Injection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An error that *bank* reports *after* seconds from the start; VALID is always set."""

    status: _U64
    bank: Annotated[int, Meta(ge=0, lt=_BANKS)] = 0
    addr: _U64 = 0
    misc: _U64 = 0
    after: Annotated[float, Meta(ge=0)] = 0.0


class MachineCheck(RegisterModel):
    """
    The machine-check banks of a thread.

    The guest sees an injected error when it polls its banks, as kernels do for corrected errors; no
    machine-check exception is raised. A bank that already has a valid error when another one comes
    keeps the first and sets OVER.
    """

    class Parameters(RegisterModel.Parameters, frozen=True, kw_only=True):
        """*inject* lists errors: *bank*, *status*, *addr*, *misc*, and *after* in seconds."""

        banks: Annotated[int, Meta(ge=1, le=_BANKS)] = 10
        inject: Annotated[tuple[_Injection, ...], Meta(max_length=1000)] = ()

        def __post_init__(self) -> None:
            for number, error in enumerate(self.inject):
                if error.bank >= self.banks:
                    raise ValueError(f"inject[{number}].bank: there are {self.banks} banks")
                if max(error.status, error.addr, error.misc) >> 64:
                    raise ValueError(f"inject[{number}]: a register has 64 bits")

    scope = Scope.THREAD

    cap = Register("IA32_MCG_CAP", "ro")
    status = Register("IA32_MCG_STATUS", others="fault", bits=Field("0-2"))
    control = Register("IA32_MCG_CTL")
    banks = Register(f"0x400-{0x400 + 4 * _BANKS - 1:#x}")
    control2 = Register(
        f"0x280-{0x280 + _BANKS - 1:#x}", others="fault", threshold=Field("0-14"), cmci=Field(30)
    )

    def setup(self) -> None:
        """Sort the errors by their time."""
        self._begin = self.now()
        self._done = 0
        self._coming = sorted(self.parameters.inject, key=lambda error: error.after)

    def _inject(self, access: Access) -> None:
        """Inject the errors that are due."""
        seconds = (self.now() - self._begin) / 1e9
        while self._done < len(self._coming) and self._coming[self._done].after <= seconds:
            error = self._coming[self._done]
            self._done += 1
            base = self.banks.indices[0] + 4 * error.bank
            before = self.get(self.banks, access._replace(index=base + _STATUS))
            if before & _VALID:
                self._put(access, base + _STATUS, before | _OVERFLOW)
                continue
            self._put(access, base + _STATUS, error.status | _VALID)
            self._put(access, base + _ADDR, error.addr)
            self._put(access, base + _MISC, error.misc)

    def _put(self, access: Access, index: int, value: int) -> None:
        self.set(self.banks, access._replace(index=index), value)

    def read(self, register: Register, access: Access) -> int:
        """Return a register's value, after injecting what is due."""
        self._inject(access)
        if register is self.cap:
            return int(self.parameters.banks) | 1 << 8  # MCG_CTL_P: IA32_MCG_CTL exists
        self._check_bank(register, access)
        if register is self.control and not self.was_written(register, access):
            return (1 << 64) - 1
        return super().read(register, access)

    def write(self, register: Register, access: Access) -> None:
        """Keep the value; a status register accepts only 0."""
        self._inject(access)
        self._check_bank(register, access)
        if register is self.banks and access.index % 4 == _STATUS and access.value:
            raise Fault
        super().write(register, access)

    def _check_bank(self, register: Register, access: Access) -> None:
        """Raise Fault if *access* is to a bank that does not exist."""
        number = -1
        if register is self.banks:
            number = register.number(access.index) // 4
        elif register is self.control2:
            number = register.number(access.index)
        if number >= self.parameters.banks:
            raise Fault

    def state(self) -> dict[str, Any]:
        """Return the registers, the elapsed time, and the number of errors injected."""
        return super().state() | {"elapsed": self.now() - self._begin, "done": self._done}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from there."""
        super().restore(state)
        self._begin = self.now() - state["elapsed"]
        self._done = state["done"]
