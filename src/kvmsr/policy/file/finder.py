# SPDX-License-Identifier: Apache-2.0
"""
Finding Python
--------------

What a policy file's ``module:function`` and ``module:Class`` mean to whoever reads the file.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from kvmsr.errors import PolicyError
from kvmsr.policy.access import Handler
from kvmsr.policy.registers import ModelClass
from kvmsr.text import shown

__all__ = ("Finder", "split_name")


class Finder(Protocol):
    """
    Finds what a policy names in Python modules.

    A module or package beside the policy file comes before one on Python's path.

    :ivar runs_code: whether finding something runs the module that it is in.
    """

    runs_code: bool

    def function(self, name: str, folder: Path) -> Handler:
        """
        Return function *name*, written ``module:function``.

        :param folder: where the policy file is.
        :raises PolicyError: if there is none.
        """

    def model(self, name: str, folder: Path, parameters: Mapping[str, Any]) -> ModelClass:
        """
        Return the register model *name*, written ``module:Class``.

        :param folder: where the policy file is.
        :param parameters: what the policy sets of it.
        :raises PolicyError: if there is none.
        """


def split_name(name: str, what: str) -> tuple[str, str]:
    """
    Return module and attribute of ``module:attribute``.

    :param what: how messages call the attribute: ``function`` or ``Class``.
    :raises PolicyError: if *name* is not so written.
    """
    match = re.fullmatch(r"([A-Za-z_][\w.]*):(\w+)", name)
    if match is None:
        raise PolicyError(f"{shown(name)} names nothing: write module:{what}")
    return match[1], match[2]
