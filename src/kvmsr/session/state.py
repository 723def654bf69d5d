# SPDX-License-Identifier: Apache-2.0
"""
State files
-----------

What the VMM's own snapshots do not hold: shadowed registers, models and counts, as JSON.
"""

import tempfile
from pathlib import Path
from typing import Annotated, Any, Final, Self

import msgspec
from msgspec import Meta

from kvmsr.errors import UsageError
from kvmsr.files import read_regular

__all__ = ("State", "VmState", "load_state", "parse_state", "save_state")

_MAX_SIZE: Final = 64 << 20  # bytes: all the shadows of many VMs

_U32 = Annotated[int, Meta(ge=0, lt=1 << 32)]
_Natural = Annotated[int, Meta(ge=0)]  # msgspec knows no larger bound than 2**63
_Holder = Annotated[int, Meta(gt=-(1 << 22), lt=1 << 20)]


class _Shadows(msgspec.Struct, forbid_unknown_fields=True):
    """Registers: holder, MSR, value; and those that were written, where that matters."""

    values: list[tuple[_Holder, _U32, _Natural]] = []
    written: list[tuple[_Holder, _U32]] = []


class VmState(msgspec.Struct, forbid_unknown_fields=True):
    """
    What one VM's registers hold.

    :ivar vcpus: how many vCPUs it has.
    :ivar models: what models keep, by their names.
    :ivar conditions: how often rules that count have matched.
    :ivar elapsed: for how many nanoseconds counters have counted.
    """

    shadows: _Shadows
    models: dict[str, Any]
    conditions: dict[str, _Natural]
    vcpus: Annotated[int, Meta(ge=1, le=1 << 16)] = 1
    elapsed: Annotated[int, Meta(ge=0, lt=1 << 62)] = 0

    def __post_init__(self) -> None:
        values = [value for _, _, value in self.shadows.values]
        for value in (*values, *self.conditions.values()):
            if value >> 64:
                raise ValueError(f"{value} does not fit 64 bits")

    @classmethod
    def of(cls, vcpus: int, state: dict[str, Any]) -> Self:
        """Return the state that dispatchers tell, of a VM with so many vCPUs."""
        return msgspec.convert({"vcpus": vcpus, **state}, cls)

    def as_dict(self) -> dict[str, Any]:
        """Return it as dispatchers know it."""
        given: dict[str, Any] = msgspec.to_builtins(self)
        return given


class State(msgspec.Struct, forbid_unknown_fields=True):
    """
    What the VMs' registers hold.

    :ivar vms: by the order in which the VMM made them.
    :ivar policy: what the policy was called, for people.
    :ivar version: of this form.
    """

    vms: list[VmState]
    policy: str = ""
    version: Annotated[int, Meta(ge=1, le=1)] = 1

    def as_json(self) -> str:
        """Return what a state file has."""
        return msgspec.json.format(msgspec.json.encode(self)).decode() + "\n"


def parse_state(data: bytes, name: str) -> State:
    """
    Return the state that *data* holds.

    :raises UsageError: naming *name*, if it holds none.
    """
    try:
        return msgspec.json.decode(data, type=State)
    except msgspec.MsgspecError as error:
        raise UsageError(f"{name}: this is no state that kvmsr has saved: {error}") from None


def load_state(file: Path) -> State:
    """
    Read a state file.

    :raises UsageError: if it cannot be read, or is none.
    """
    try:
        data = read_regular(file, _MAX_SIZE)
    except OSError as error:
        raise UsageError(f"{file}: cannot read the state: {error.strerror}") from None
    return parse_state(data, str(file))


def save_state(file: Path, state: State) -> None:
    """
    Write a state file; what was there is replaced at once or not at all.

    :raises UsageError: if it cannot be written.
    """
    try:
        number, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with open(number, "wb") as temporary:
                temporary.write(state.as_json().encode())
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink()
            raise
    except OSError as error:
        raise UsageError(f"{file}: cannot write the state: {error.strerror}") from None
