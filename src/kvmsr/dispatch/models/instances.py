# SPDX-License-Identifier: Apache-2.0
"""
Model instances
---------------

Make the register models of a VM: one instance for each model, set of parameters, and unit of the
model's scope.

Instances belong to the VM's registers, and outlive the policy: another policy that names the same
model with the same parameters goes on with the same instance. A model from a module that has been
read again is another class, although it has the same name. Then a new instance takes over the state
of the old one, and also the accesses that are still on their way to it.
"""

import threading
import time
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from kvmsr.dispatch.models.base import Cpu, RegisterModel, Site
from kvmsr.errors import PolicyError
from kvmsr.policy import Access, Fault, Model, Op
from kvmsr.policy.registers import ModelClass
from kvmsr.policy.topology import Topology
from kvmsr.text import error_text, one_line

__all__ = ("Instances", "Kept")

_MAX_NOTES: Final = 100
_READ: Final = Op.READ

_Key = tuple[tuple[ModelClass, bytes], int]


class _Name(NamedTuple):
    """
    What identifies an instance in all policies of a run.

    :ivar number: tells apart the classes of one policy that agree in all the rest.
    """

    module: str
    name: str
    parameters: bytes
    unit: int
    number: int


class _Cell:
    """
    The place of an instance. All policies of a run share it, so that an access that is still on its
    way under a policy before finds the instance that is there now.

    :ivar lock: held while the instance answers, and while another one takes its place.
    :ivar model: the instance.
    :ivar topology: the topology that it was made for.
    :ivar initial: the state that it began with, as JSON.
    """

    __slots__ = ("initial", "lock", "model", "topology")

    def __init__(self, model: RegisterModel, topology: Topology) -> None:
        self.lock = threading.Lock()
        self.put(model, topology, msgspec.json.encode(model.state()))

    def put(self, model: RegisterModel, topology: Topology, initial: bytes) -> None:
        """Put an instance here."""
        self.model = model
        self.topology = topology
        self.initial = initial


class Kept:
    """
    The instances and notes of one VM, which all policies of a run share.

    :ivar notes: the first 100 lines that models want to show to the user.
    """

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.cells: dict[_Name, _Cell] = {}

    def forget_all_but(self, used: set[_Name]) -> None:
        """Forget the instances that are not *used*."""
        for name in self.cells.keys() - used:
            del self.cells[name]


class _Change:
    """
    A new instance that is to take the place of another one.

    :param cell: the place.
    :param make: makes an instance.
    :param topology: the topology that it is made for.
    """

    def __init__(self, cell: _Cell, make: Callable[[], RegisterModel], topology: Topology) -> None:
        self._cell = cell
        self._make = make
        self._new = make()
        self._topology = topology
        self._initial = msgspec.json.encode(self._new.state())
        self._old = cell.model, cell.topology, cell.initial

    def do(self) -> str:
        """Let the new instance take over, and return a line if it has to begin anew; or ""."""
        warning = ""
        with self._cell.lock:
            try:
                self._new.restore(self._cell.model.state())
            except Exception as error:  # it may be anybody's code
                self._new = self._make()
                warning = (
                    f"the model {type(self._new).__qualname__} has changed and begins anew: its"
                    f" state could not be taken over: {error_text(error)}"
                )
            self._cell.put(self._new, self._topology, self._initial)
        return warning

    def undo(self) -> None:
        """Put the old instance back, with what the guest has written meanwhile."""
        with self._cell.lock:
            with suppress(Exception):
                self._old[0].restore(self._new.state())
            self._cell.put(*self._old)


class Instances:
    """
    The register models of a VM under one policy.

    The threads of several vCPUs may use them at once. Until :meth:`take_over`, they change nothing
    that other policies use.

    :param topology: which vCPUs share registers.
    :param vcpus: number of vCPUs.
    :param clock: returns the guest's time in nanoseconds; by default the host's monotonic clock.
    :param memory: returns the given number of bytes at an address of the guest's memory, or None
        if there is no memory.
    :param cpu: the guest's CPU; by default, it is not known.
    :param kept: the instances of the VM; by default, there are none yet.
    :ivar vcpus: number of vCPUs.
    """

    def __init__(
        self,
        topology: Topology,
        vcpus: int,
        clock: Callable[[], int] = time.monotonic_ns,
        memory: Callable[[int, int], bytes | None] = lambda address, size: None,
        kept: Kept | None = None,
        cpu: Cpu | None = None,
    ) -> None:
        self.vcpus = vcpus
        self._kept = kept or Kept()
        self._topology = topology
        self._clock = clock
        self._memory = memory
        self._cpu = cpu or Cpu()
        self._found: dict[_Key, _Cell] = {}
        self._names: dict[_Key, str] = {}
        self._places: dict[_Key, _Name] = {}
        self._making = threading.Lock()
        self._is_in_force = False
        self._changes: list[_Change] = []

    @property
    def notes(self) -> list[str]:
        """Return the first 100 lines that models want to show to the user."""
        return self._kept.notes

    @property
    def used(self) -> set[_Name]:
        """Return the names of the instances."""
        return set(self._places.copy().values())

    def prepare(self, action: Model, where: str) -> None:
        """
        Make the instances for *action* now, to report errors before the guest runs.

        :param where: where the rule that names the model was written.
        :raises PolicyError: if the model cannot be set up.
        """
        for vcpu in range(self.vcpus):
            try:
                self._instance(action, vcpu)
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                raise PolicyError(
                    f"{where}: {action} cannot be set up: {error_text(error)}"
                ) from error

    def handler(self, action: Model) -> Callable[[Access], int | None]:
        """Return a handler that lets *action*'s model answer accesses."""
        scope = action.cls.scope
        unit_of = self._topology.unit
        by_unit: dict[int, _Cell] = {}

        def answer(access: Access) -> int | None:
            unit = unit_of(scope, access.vcpu)
            cell = by_unit.get(unit)
            if cell is None:
                cell = by_unit[unit] = self._instance(action, access.vcpu)
            with cell.lock:
                model = cell.model
                register = model.registers.get(access.index)
                if access.op == _READ:
                    if register is None or not register.readable:
                        raise Fault
                    return model.read(register, access)
                if register is None or not register.writable:
                    raise Fault
                model.write(register, access)
                return None

        return answer

    # One policy after the other

    def take_over(self) -> list[str]:
        """
        Put the new instances in the place of those that they replace, with their state.

        Return a line for each model that could not restore the state, and begins anew.
        """
        with self._making:
            self._is_in_force = True
            for key, name in self._places.items():
                self._kept.cells.setdefault(name, self._found[key])
        return list(filter(None, [change.do() for change in self._changes]))

    def give_back(self) -> None:
        """Undo :meth:`take_over`, because the policy could not be put in force."""
        for change in self._changes:
            change.undo()
        self.settle()

    def settle(self) -> None:
        """Forget what :meth:`give_back` needs."""
        self._changes.clear()

    # State

    def state(self) -> dict[str, Any]:
        """
        Return the state of all models, as JSON types.

        :raises PolicyError: if a model fails to return it.
        """
        states = {}
        for key, cell in self._found.copy().items():
            name = self._names[key]
            try:
                with cell.lock:
                    states[name] = msgspec.to_builtins(cell.model.state())
            except Exception as error:  # it may be anybody's code
                raise PolicyError(
                    f"the state of the model {name} cannot be saved: {error_text(error)}"
                ) from None
        return states

    def restore(self, state: Mapping[str, Any]) -> None:
        """
        Restore a state returned by :meth:`state`. Models of units that it does not have are reset.

        :raises PolicyError: if it belongs to another policy's models, or a model refuses it.
        """
        names = {name: key for key, name in self._names.items()}
        saved = {_model_of(name) for name in state}
        odd = {name for name in state if name not in names}
        odd |= {name for name in names if _model_of(name) not in saved}
        if odd:
            raise PolicyError(
                "this state was saved under another policy; models that differ:"
                f" {', '.join(sorted(odd))}"
            )
        self.reset()
        for name, kept in state.items():
            _restore(self._found[names[name]], name, kept)

    def reset(self, keep: Container[tuple[ModelClass, bytes]] = ()) -> None:
        """
        Give all models the state that they began with.

        :param keep: the keys (:attr:`Model.key`) of models that keep their state.
        :raises PolicyError: if a model refuses it.
        """
        for key, cell in self._found.copy().items():
            if key[0] not in keep:
                _restore(cell, self._names[key], msgspec.json.decode(cell.initial))

    def _instance(self, action: Model, vcpu: int) -> _Cell:
        cls: Any = action.cls
        unit = self._topology.unit(cls.scope, vcpu)
        key = (action.key, unit)
        with self._making:
            found = self._found.get(key)
            if found is None:
                members = self._topology.members(cls.scope, unit, max(self.vcpus, vcpu + 1))
                site = Site(
                    self._topology, unit, members, self._clock, self._note, self._memory, self._cpu
                )
                self._places[key] = place = self._place(key)
                make = partial(cls, action.parameters, site)
                found = self._found[key] = self._cell(place, cls, make)
                self._names[key] = self._name(action, unit)
        return found

    def _name(self, action: Model, unit: int) -> str:
        name = f"{action.name} {action.key[1].decode()} {action.cls.scope}"
        # Two modules in different folders may have the same name.
        others = self._names.values()
        same = sum(other.startswith(name) and other.endswith(f" {unit}") for other in others)
        return f"{name} ({same}) {unit}" if same else f"{name} {unit}"

    def _place(self, key: _Key) -> _Name:
        (cls, parameters), unit = key
        found: Any = cls
        name = _Name(found.__module__, found.__qualname__, parameters, unit, 0)
        taken = set(self._places.values())
        while name in taken:
            name = name._replace(number=name.number + 1)
        return name

    def _cell(self, place: _Name, cls: Any, make: Callable[[], RegisterModel]) -> _Cell:
        """Return the place of an instance; one of another class gives way in take_over()."""
        cell = self._kept.cells.get(place)
        if cell is None:
            cell = _Cell(make(), self._topology)
            if self._is_in_force:
                self._kept.cells[place] = cell
        elif type(cell.model) is not cls or cell.topology != self._topology:
            change = _Change(cell, make, self._topology)
            if self._is_in_force:
                change.do()
            else:
                self._changes.append(change)
        return cell

    def _note(self, text: str) -> None:
        notes = self._kept.notes
        if len(notes) < _MAX_NOTES:
            notes.append(one_line(" ".join(text.split())))


def _restore(cell: _Cell, name: str, state: Mapping[str, Any]) -> None:
    try:
        with cell.lock:
            cell.model.restore(state)
    except Exception as error:  # the model and the state may come from anywhere
        raise PolicyError(
            f"the state of the model {name} cannot be restored: {error_text(error)}"
        ) from None


def _model_of(name: str) -> str:
    """Return an instance's name without its unit."""
    return name.rpartition(" ")[0]
