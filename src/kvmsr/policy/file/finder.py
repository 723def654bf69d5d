# SPDX-License-Identifier: Apache-2.0
"""
Resolving Python names
----------------------

How a reader of policy files resolves ``module:function`` and ``module:Class``.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from kvmsr.errors import PolicyError
from kvmsr.policy.access import Handler
from kvmsr.policy.registers import ModelClass
from kvmsr.text import shown

__all__ = ("Finder", "split_name")


class Finder(Protocol):
    """
    Resolves the names of functions and models in Python modules.

    A module or package next to the policy file takes precedence over Python's path.

    :ivar runs_code: whether resolving a name runs its module.
    """

    runs_code: bool

    @property
    def files(self) -> Iterable[Path]:
        """Return the files of the modules next to policy files that have been found so far."""

    def function(self, name: str, folder: Path) -> Handler:
        """
        Return the function *name*, which is written ``module:function``.

        :param folder: the folder of the policy file.
        :raises PolicyError: if there is no such function.
        """

    def model(self, name: str, folder: Path, parameters: Mapping[str, Any]) -> ModelClass:
        """
        Return the register model *name*, which is written ``module:Class``.

        :param folder: the folder of the policy file.
        :param parameters: the parameters that the policy sets.
        :raises PolicyError: if there is no such model.
        """


def split_name(name: str, what: str) -> tuple[str, str]:
    """
    Split ``module:attribute``.

    :param what: what messages call the attribute: ``function`` or ``Class``.
    :raises PolicyError: if *name* is not of this form.
    """
    match = re.fullmatch(r"([A-Za-z_][\w.]*):(\w+)", name)
    if match is None:
        raise PolicyError(f"{shown(name)} is not a name in a module: write module:{what}")
    return match[1], match[2]
