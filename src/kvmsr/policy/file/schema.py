# SPDX-License-Identifier: Apache-2.0
"""
Tables of a policy file
-----------------------

The tables and keys of a policy file as types, which msgspec checks files against.
"""

from typing import Any

import msgspec

__all__ = (
    "ActionTable",
    "DefaultsTable",
    "File",
    "HeaderTable",
    "ModelTable",
    "RuleTable",
    "TopologyTable",
)


class HeaderTable(msgspec.Struct, forbid_unknown_fields=True):
    """The table ``[policy]``."""

    name: str = ""
    description: str = ""
    extends: list[str] = []
    symbols: str = ""
    observe: int | str | list[int | str] = []
    allow_host_writes: bool = False


class DefaultsTable(msgspec.Struct, forbid_unknown_fields=True):
    """The table ``[defaults]``."""

    unknown: str | None = None
    invalid: str | None = None
    on_error: str | None = None


class TopologyTable(msgspec.Struct, forbid_unknown_fields=True):
    """The table ``[topology]``."""

    threads_per_core: int | None = None
    cores_per_package: int | None = None


class ActionTable(msgspec.Struct, forbid_unknown_fields=True):
    """An action with parameters; those of a model are keys of the same table."""

    value: int | None = None
    python: str | None = None
    host: str | int | None = None
    counter: int | None = None
    model: str | None = None


class ModelTable(msgspec.Struct):
    """A model for reads and writes; its parameters are keys of the same table."""

    name: str


class RuleTable(msgspec.Struct, forbid_unknown_fields=True):
    """An element of ``[[rule]]``."""

    msr: int | str | list[int | str]
    read: str | dict[str, Any] | None = None
    write: str | dict[str, Any] | None = None
    model: str | dict[str, Any] | None = None
    reset: int | None = None
    bits: dict[str, str] | None = None
    scope: str | None = None
    keep: bool = False
    when: dict[str, Any] | None = None
    log: str | None = None


class File(msgspec.Struct, forbid_unknown_fields=True):
    """A policy file."""

    policy: HeaderTable = msgspec.field(default_factory=HeaderTable)
    defaults: DefaultsTable = msgspec.field(default_factory=DefaultsTable)
    topology: TopologyTable = msgspec.field(default_factory=TopologyTable)
    rule: list[RuleTable] = []
