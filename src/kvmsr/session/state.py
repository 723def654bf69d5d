# SPDX-License-Identifier: Apache-2.0
"""
State files
-----------

Save and restore what a VMM's own snapshots do not contain: shadowed registers, models and match
counts. A state file is JSON.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final, Self

import msgspec
from msgspec import Meta

from kvmsr.errors import UsageError
from kvmsr.files import read_regular

__all__ = ("State", "VmState", "kept_state", "load_state", "parse_state", "save_state")

_VERSION: Final = 1

_MAX_SIZE: Final = 64 << 20  # bytes; enough for all shadows of many VMs

_U32 = Annotated[int, Meta(ge=0, lt=1 << 32)]
_Natural = Annotated[int, Meta(ge=0)]  # msgspec knows no larger bound than 2**63
_Holder = Annotated[int, Meta(gt=-(1 << 22), lt=1 << 20)]


class _Shadows(msgspec.Struct, forbid_unknown_fields=True):
    """Holder, MSR and value of each shadow, and those with ``once`` bits that were written."""

    values: list[tuple[_Holder, _U32, _Natural]] = []
    written: list[tuple[_Holder, _U32]] = []


class VmState(msgspec.Struct, forbid_unknown_fields=True):
    """
    The state of one VM's registers.

    :ivar shadows: the shadowed registers.
    :ivar models: the state of each model, by its name.
    :ivar conditions: the number of matches of each rule that counts.
    :ivar vcpus: number of vCPUs.
    :ivar elapsed: nanoseconds for which counters have counted.
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
        """Return the state of a VM with *vcpus* vCPUs, from what its dispatcher saved."""
        return msgspec.convert({"vcpus": vcpus, **state}, cls)

    def as_dict(self) -> dict[str, Any]:
        """Return the state in the form that a dispatcher restores."""
        given: dict[str, Any] = msgspec.to_builtins(self)
        return given


class _Head(msgspec.Struct):
    """What a state of any version has."""

    version: int = _VERSION


class State(msgspec.Struct, forbid_unknown_fields=True):
    """
    The state of all VMs' registers.

    :ivar vms: the VMs, in the order in which the VMM created them.
    :ivar policy: the policy's file or name, for people.
    :ivar version: version of the format.
    """

    vms: list[VmState]
    policy: str = ""
    version: Annotated[int, Meta(ge=1, le=_VERSION)] = _VERSION

    def as_json(self) -> str:
        """Return the contents of a state file."""
        return msgspec.json.format(msgspec.json.encode(self)).decode() + "\n"


def parse_state(data: bytes, name: str) -> State:
    """
    Parse the contents of a state file.

    :param data: the contents.
    :param name: the file's name, for messages.
    :raises UsageError: if *data* is not a state.
    """
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.version > _VERSION:
            raise UsageError(
                f"{name}: this state has version {head.version}, and this kvmsr knows {_VERSION}:"
                " use the kvmsr that saved it, or a later one"
            )
        return msgspec.json.decode(data, type=State)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{name}: this is not a state that kvmsr has saved: {error}") from None


def load_state(file: Path) -> State:
    """
    Read a state file.

    :raises UsageError: if it cannot be read, or is not a state.
    """
    try:
        data = read_regular(file, _MAX_SIZE)
    except OSError as error:
        raise UsageError(f"{file}: cannot read the state: {error.strerror}") from None
    return parse_state(data, str(file))


def kept_state(file: Path) -> State | None:
    """
    Return the state in *file*, which keeps it from one run to the next; None in the first run.

    :raises UsageError: if the file cannot be read or is not a state, or if there is none and it
        could not be written either.
    """
    try:
        data = read_regular(file, _MAX_SIZE)
    except FileNotFoundError:
        if not file.parent.is_dir():
            raise UsageError(f"--state {file}: there is no folder {file.parent}") from None
        if not os.access(file.parent, os.W_OK):
            raise UsageError(f"--state {file}: the folder {file.parent} is read-only") from None
        return None
    except OSError as error:
        raise UsageError(f"--state {file}: cannot read the state: {error.strerror}") from None
    try:
        return parse_state(data, str(file))
    except UsageError as error:
        remedy = "to begin with reset values, move the file away"
        raise UsageError(f"--state {error}; {remedy}") from None


def save_state(file: Path, state: State) -> None:
    """
    Write a state file. An existing file is replaced atomically.

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
