# SPDX-License-Identifier: Apache-2.0
"""
The base of register models
---------------------------

What every model has: registers, parameters, a site, and a stored value for each register.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, dataclass_transform

import msgspec

from kvmsr.policy import Access, Fault
from kvmsr.policy.registers import Register
from kvmsr.policy.topology import Scope, Topology

__all__ = ("Cpu", "RegisterModel", "Site")


_WIDTH: Final = {scope: width for width, scope in enumerate(Scope)}


@dataclass(frozen=True, slots=True)
class Cpu:
    """
    The guest's CPU, as far as it is known.

    :ivar signature: family, model and stepping, as in CPUID.01H:EAX; 0 if they are not known.
    :ivar tsc_khz: the frequency of the guest's TSC in kHz; 0 if it is not known.
    """

    signature: int = 0
    tsc_khz: int = 0

    @property
    def model(self) -> tuple[int, int]:
        """Return family and model (SDM volume 2A, CPUID, figure 3-6)."""
        family, model = self.signature >> 8 & 0xF, self.signature >> 4 & 0xF
        if family in (6, 15):
            model |= self.signature >> 12 & 0xF0
        return family + (self.signature >> 20 & 0xFF) * (family == 15), model


@dataclass(frozen=True, slots=True)
class Site:
    """
    The part of a VM that one instance of a model serves.

    :ivar topology: which vCPUs share registers.
    :ivar unit: number of the thread, core or package, from 0.
    :ivar vcpus: the vCPUs in that unit.
    :ivar clock: returns the guest's time in nanoseconds; it never goes backwards.
    :ivar note: receives a line to show to the user at the end of the run.
    :ivar memory: returns the given number of bytes at an address of the guest's memory, or None if
        there is no memory or it cannot be read.
    :ivar cpu: the guest's CPU.
    """

    topology: Topology
    unit: int
    vcpus: tuple[int, ...]
    clock: Callable[[], int]
    note: Callable[[str], None]
    memory: Callable[[int, int], bytes | None] = lambda address, size: None
    cpu: Cpu = field(default_factory=Cpu)


class RegisterModel:
    """
    Base class of register models: behaviour behind one or more MSRs.

    There is one instance for each unit of :attr:`scope` and each set of parameters. All rules that
    name the model with these parameters share it, so registers that depend on each other, such as
    an energy counter and the register of its unit, can be in separate rules. An instance's methods
    are called one at a time, in the thread of the vCPU that waits for the answer.

    :cvar scope: the unit that has an instance of its own. A register may have a narrower scope.
    :cvar registers: the declared registers by MSR, collected from the class's attributes.
    :ivar parameters: the policy's parameters, an instance of the class's ``Parameters``.
    :ivar site: the part of the VM that this instance serves.
    :raises TypeError: from a subclass that declares an MSR twice, or a register whose scope is
        wider than the model's.
    """

    @dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
    class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """
        What a policy may set: annotated attributes with defaults. Subclasses are frozen, too.

        Declare ranges with msgspec's ``Meta`` and choices with ``Literal``. Check parameters that
        depend on each other in ``__post_init__``, and raise ValueError if they do not fit.
        """

    scope: ClassVar[Scope] = Scope.PACKAGE
    registers: ClassVar[Mapping[int, Register]] = {}

    parameters: Any
    site: Site

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        declared: dict[str, Register] = {}
        for ancestor in reversed(cls.__mro__):
            for name, value in vars(ancestor).items():
                if isinstance(value, Register):
                    declared[name] = value
                else:
                    declared.pop(name, None)  # a subclass removed it
        registers: dict[int, Register] = {}
        for register in declared.values():
            for index in register.indices:
                other = registers.setdefault(index, register)
                if other is not register:
                    raise TypeError(f"{index:#x} is both {other.name} and {register.name}")
            if register.scope is not None and _WIDTH[register.scope] > _WIDTH[cls.scope]:
                raise TypeError(
                    f"{register.name} has the scope {register.scope}, wider than the model's,"
                    f" {cls.scope}: no instance of it could keep it"
                )
        cls.registers = registers

    def __init__(self, parameters: Any, site: Site) -> None:
        self.parameters = parameters
        self.site = site
        self._values: dict[tuple[int, int], int] = {}
        self._written: set[tuple[int, int]] = set()
        self.setup()

    # What a model overrides

    def setup(self) -> None:
        """Prepare the model's own state, in addition to registers, before the guest begins."""

    def read(self, register: Register, access: Access) -> int:
        """
        Return what the guest reads, 0 to 2**64 - 1. By default, that is the register's value.

        :raises Fault: for #GP(0).
        """
        value = self.get(register, access)
        if register.bits.rc & value:
            self.set(register, access, value & ~register.bits.rc)
        return value

    def write(self, register: Register, access: Access) -> None:
        """
        Handle a write. By default, the value is kept according to the kinds of the fields.

        :raises Fault: for #GP(0). The register must then be left unchanged.
        """
        key = self._key(register, access)
        first = key not in self._written
        value = register.bits.write(self.get(register, access), access.value, first=first)
        if value is None:
            raise Fault
        self._values[key] = value
        self._written.add(key)

    def state(self) -> dict[str, Any]:
        """Return what must survive a snapshot, as JSON types. A subclass adds its own to it."""
        return {
            "values": [[*key, value] for key, value in sorted(self._values.items())],
            "written": [list(key) for key in sorted(self._written)],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """
        Restore a state returned by :meth:`state`.

        The clock may have jumped either way since then, so a state must contain time spans, not
        points in time.
        """
        self._values = {(index, unit): value for index, unit, value in state["values"]}
        self._written = {(index, unit) for index, unit in state["written"]}

    # What a model uses

    def get(self, register: Register, access: Access) -> int:
        """Return *register*'s value for the MSR and vCPU of *access*."""
        return self._values.get(self._key(register, access), register.reset)

    def set(self, register: Register, access: Access, value: int) -> None:
        """Set *register*'s value for the MSR and vCPU of *access*, read-only bits included."""
        self._values[self._key(register, access)] = value & (1 << 64) - 1

    def was_written(self, register: Register, access: Access) -> bool:
        """Return whether the guest has written *register* since reset."""
        return self._key(register, access) in self._written

    def now(self) -> int:
        """Return the guest's time in nanoseconds. It never goes backwards."""
        return self.site.clock()

    def note(self, text: str) -> None:
        """Show *text*, one line, to the user at the end of the run. The first 100 are kept."""
        self.site.note(text)

    def _key(self, register: Register, access: Access) -> tuple[int, int]:
        return access.index, self.site.topology.unit(register.scope or self.scope, access.vcpu)
