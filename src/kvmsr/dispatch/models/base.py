# SPDX-License-Identifier: Apache-2.0
"""
The base of register models
---------------------------

What every model has: its registers, its parameters, the place where it stands, and a value kept for
each register.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, dataclass_transform

import msgspec

from kvmsr.policy import Access, Fault
from kvmsr.policy.registers import Register
from kvmsr.policy.topology import Scope, Topology

__all__ = ("RegisterModel", "Site")


_WIDTH: Final = {scope: width for width, scope in enumerate(Scope)}


@dataclass(frozen=True, slots=True)
class Site:
    """
    Where one instance of a model stands.

    :ivar topology: which vCPUs share registers.
    :ivar unit: the number, from 0, of the thread, core or package that it serves.
    :ivar vcpus: the vCPUs in that unit.
    :ivar clock: gives the guest's time in nanoseconds, never less than before.
    :ivar note: takes a line that the user shall read at the end of the run.
    :ivar memory: gives so many bytes at an address of the guest's memory; None where there is none,
        or nobody can read it.
    """

    topology: Topology
    unit: int
    vcpus: tuple[int, ...]
    clock: Callable[[], int]
    note: Callable[[str], None]
    memory: Callable[[int, int], bytes | None] = lambda address, size: None


class RegisterModel:
    """
    Behaviour behind one or more MSRs; derive from it.

    There is one instance for each unit of :attr:`scope` and each set of parameters, whatever rules
    name it: a unit register and a counter that depend on each other meet in it. Its methods are
    called one at a time, in the thread of the vCPU that waits for the answer.

    :cvar scope: what has an instance of its own; a register may have a narrower scope.
    :cvar registers: the declared registers by MSR; made of the class's attributes.
    :ivar parameters: what the policy says, as the class's ``Parameters`` declares it.
    :ivar site: where this instance stands.
    """

    @dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
    class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """
        What a policy may set: annotated attributes with defaults. Subclasses are frozen, too.

        Give ranges with msgspec's ``Meta`` and choices with ``Literal``. Check what must fit
        together in ``__post_init__``, and raise ValueError where it does not.
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
                    declared.pop(name, None)  # a subclass took it away
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
        """Prepare what the model keeps besides its registers; the guest has not begun yet."""

    def read(self, register: Register, access: Access) -> int:
        """
        Return what the guest reads, 0 to 2**64 - 1; by default what the register holds.

        :raises Fault: for #GP(0).
        """
        value = self.get(register, access)
        if register.bits.rc & value:
            self.set(register, access, value & ~register.bits.rc)
        return value

    def write(self, register: Register, access: Access) -> None:
        """
        Take what the guest writes; by default it is kept as the fields' kinds say.

        :raises Fault: for #GP(0); the register must then be as before.
        """
        key = self._key(register, access)
        first = key not in self._written
        value = register.bits.write(self.get(register, access), access.value, first=first)
        if value is None:
            raise Fault
        self._values[key] = value
        self._written.add(key)

    def state(self) -> dict[str, Any]:
        """Return what must survive a snapshot, as JSON knows it; extend it in a subclass."""
        return {
            "values": [[*key, value] for key, value in sorted(self._values.items())],
            "written": [list(key) for key in sorted(self._written)],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """
        Become what :meth:`state` told.

        The clock may have moved on or back since: keep differences in the state, not instants.
        """
        self._values = {(index, unit): value for index, unit, value in state["values"]}
        self._written = {(index, unit) for index, unit in state["written"]}

    # What a model uses

    def get(self, register: Register, access: Access) -> int:
        """Return what *register* holds for the MSR and the vCPU of *access*."""
        return self._values.get(self._key(register, access), register.reset)

    def set(self, register: Register, access: Access, value: int) -> None:
        """Let *register* hold *value*, whatever its bits are for the guest."""
        self._values[self._key(register, access)] = value & (1 << 64) - 1

    def was_written(self, register: Register, access: Access) -> bool:
        """Tell whether the guest has written it, since reset."""
        return self._key(register, access) in self._written

    def now(self) -> int:
        """Return the guest's time in nanoseconds, never less than before."""
        return self.site.clock()

    def note(self, text: str) -> None:
        """Tell the user *text*, one line, at the end of the run; the first 100 are kept."""
        self.site.note(text)

    def _key(self, register: Register, access: Access) -> tuple[int, int]:
        return access.index, self.site.topology.unit(register.scope or self.scope, access.vcpu)
