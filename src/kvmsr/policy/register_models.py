# SPDX-License-Identifier: Apache-2.0
"""
Register models by name
-----------------------

Finds the class for ``model = "…"``, and checks a policy's parameters against its declaration.
"""

from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import Any, Final, cast

import msgspec

from kvmsr.errors import PolicyError
from kvmsr.policy.form import convert
from kvmsr.policy.registers import ModelClass, is_model_class
from kvmsr.text import nearest, shown

__all__ = ("BUILT_IN", "find_model", "fit_parameters")

# Looked up by name, like a user's own models: this package does not import those above it.
_ROOM: Final = "kvmsr.dispatch.models"

BUILT_IN: Final[Mapping[str, str]] = {
    "amd.boot": f"{_ROOM}.amd:AmdBoot",
    "amd.pstates": f"{_ROOM}.amd:AmdPstates",
    "aperf-mperf": f"{_ROOM}.frequency:AperfMperf",
    "feature-control": f"{_ROOM}.firmware:FeatureControl",
    "frequency": f"{_ROOM}.frequency:Frequency",
    "hyperv.crash": f"{_ROOM}.hyperv:Crash",
    "mce": f"{_ROOM}.mce:MachineCheck",
    "microcode.amd": f"{_ROOM}.firmware:AmdMicrocode",
    "microcode.intel": f"{_ROOM}.firmware:IntelMicrocode",
    "mitigations": f"{_ROOM}.mitigations:Mitigations",
    "rapl.amd": f"{_ROOM}.rapl:AmdRapl",
    "rapl.intel": f"{_ROOM}.rapl:IntelRapl",
    "smi-count": f"{_ROOM}.firmware:SmiCount",
    "thermal": f"{_ROOM}.thermal:Thermal",
    "topology.core-thread-count": f"{_ROOM}.topology:CoreThreadCount",
}
"""The models that come with kvmsr, by their names in policies."""


def find_model(name: str, find: Callable[[str], Any] | None = None) -> ModelClass:
    """
    Return the class of model *name*: one that comes with kvmsr, or ``module:Class``.

    :param find: resolves ``module:Class``; by default, by importing the module.
    :raises PolicyError: if there is no such model; suggests the closest name.
    """
    place = BUILT_IN.get(name, name)
    if ":" not in place:
        hint = nearest(name, BUILT_IN)
        raise PolicyError(f"there is no model {shown(name)} (write module:Class for yours); {hint}")
    found = _imported(place) if find is None or name in BUILT_IN else find(place)
    if not is_model_class(found):
        raise PolicyError(
            f"{shown(name)} is not a register model: derive it from {_ROOM}.RegisterModel"
        )
    model: ModelClass = found
    return model


def _imported(place: str) -> Any:
    try:
        return resolve_name(place)
    except (ImportError, AttributeError, ValueError) as error:
        raise PolicyError(f"model {shown(place)} cannot be imported: {error}") from None


def fit_parameters(cls: ModelClass, given: Mapping[str, Any]) -> msgspec.Struct:
    """
    Convert *given* to the parameters that the model declares.

    :raises PolicyError: if a parameter is not declared, or has the wrong type or range.
    """
    declared = cast("type[msgspec.Struct]", cls.Parameters)
    return convert(dict(given), declared)
