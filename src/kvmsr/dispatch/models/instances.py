# SPDX-License-Identifier: Apache-2.0
"""
Model instances
---------------

Make the register models of a run: one instance for each model, set of parameters, and unit of the
model's scope.
"""

import threading
import time
from collections.abc import Callable, Container, Mapping
from typing import Any, Final

import msgspec

from kvmsr.dispatch.models.base import RegisterModel, Site
from kvmsr.errors import PolicyError
from kvmsr.policy import Access, Fault, Model, Op
from kvmsr.policy.registers import ModelClass
from kvmsr.policy.topology import Topology
from kvmsr.text import error_text, one_line

__all__ = ("Instances",)

_MAX_NOTES: Final = 100
_READ: Final = Op.READ

_Key = tuple[tuple[ModelClass, bytes], int]


class Instances:
    """
    The register models of a run.

    The threads of several vCPUs may use them at once.

    :param topology: which vCPUs share registers.
    :param vcpus: number of vCPUs.
    :param clock: returns the guest's time in nanoseconds; by default the host's monotonic clock.
    :param memory: returns the given number of bytes at an address of the guest's memory, or None
        if there is no memory.
    :ivar vcpus: number of vCPUs.
    :ivar notes: the first 100 lines that models want to show to the user.
    """

    def __init__(
        self,
        topology: Topology,
        vcpus: int,
        clock: Callable[[], int] = time.monotonic_ns,
        memory: Callable[[int, int], bytes | None] = lambda address, size: None,
    ) -> None:
        self.notes: list[str] = []
        self.vcpus = vcpus
        self._topology = topology
        self._clock = clock
        self._memory = memory
        self._found: dict[_Key, tuple[RegisterModel, threading.Lock]] = {}
        self._names: dict[_Key, str] = {}
        self._initial: dict[_Key, bytes] = {}
        self._making = threading.Lock()

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
        registers = action.cls.registers
        scope = action.cls.scope
        unit_of = self._topology.unit
        by_unit: dict[int, tuple[RegisterModel, threading.Lock]] = {}

        def answer(access: Access) -> int | None:
            register = registers[access.index]
            unit = unit_of(scope, access.vcpu)
            found = by_unit.get(unit)
            if found is None:
                found = by_unit[unit] = self._instance(action, access.vcpu)
            model, lock = found
            with lock:
                if access.op == _READ:
                    if not register.readable:
                        raise Fault
                    return model.read(register, access)
                if not register.writable:
                    raise Fault
                model.write(register, access)
                return None

        return answer

    def state(self) -> dict[str, Any]:
        """Return the state of all models, as JSON types."""
        states = {}
        for key, (model, lock) in self._found.copy().items():
            with lock:
                states[self._names[key]] = model.state()
        return states

    def restore(self, state: Mapping[str, Any]) -> None:
        """
        Restore a state returned by :meth:`state`. Models of units that it does not have are reset.

        :raises PolicyError: if it belongs to another policy's models.
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
            model, lock = self._found[names[name]]
            with lock:
                model.restore(kept)

    def reset(self, keep: Container[tuple[ModelClass, bytes]] = ()) -> None:
        """
        Give all models the state that they began with.

        :param keep: the keys (:attr:`Model.key`) of models that keep their state.
        """
        for key, (model, lock) in self._found.copy().items():
            if key[0] not in keep:
                with lock:
                    model.restore(msgspec.json.decode(self._initial[key]))

    def inherit(self, other: "Instances") -> None:
        """Copy the state of the models that *other*, another policy's instances, has in common."""
        names = {name: key for key, name in self._names.items()}
        for name, kept in other.state().items():
            if name in names:
                model, lock = self._found[names[name]]
                with lock:
                    model.restore(kept)

    def _instance(self, action: Model, vcpu: int) -> tuple[RegisterModel, threading.Lock]:
        cls: Any = action.cls
        unit = self._topology.unit(cls.scope, vcpu)
        key = (action.key, unit)
        with self._making:
            found = self._found.get(key)
            if found is None:
                members = self._topology.members(cls.scope, unit, max(self.vcpus, vcpu + 1))
                site = Site(self._topology, unit, members, self._clock, self._note, self._memory)
                model = cls(action.parameters, site)
                self._initial[key] = msgspec.json.encode(model.state())
                found = self._found[key] = model, threading.Lock()
                self._names[key] = self._name(action, unit)
        return found

    def _name(self, action: Model, unit: int) -> str:
        name = f"{action.name} {action.key[1].decode()} {action.cls.scope}"
        # Two modules in different folders may have the same name.
        others = self._names.values()
        same = sum(other.startswith(name) and other.endswith(f" {unit}") for other in others)
        return f"{name} ({same}) {unit}" if same else f"{name} {unit}"

    def _note(self, text: str) -> None:
        if len(self.notes) < _MAX_NOTES:
            self.notes.append(one_line(" ".join(text.split())))


def _model_of(name: str) -> str:
    """Return an instance's name without its unit."""
    return name.rpartition(" ")[0]
