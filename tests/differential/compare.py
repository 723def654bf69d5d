# SPDX-License-Identifier: Apache-2.0
"""
Comparing observations
----------------------

What differs between two kernels, after what no kernel determines is left out, and what the one at
hand is known to do its own way. Each such thing has its reason here, and nothing else is let off.
"""

from collections.abc import Callable
from typing import Any, Final

from tests.differential import guest
from tests.differential.machine import Observation
from tests.differential.scenario import Scenario

__all__ = ("LEFT_OUT", "differences", "timeless")

_TSC, _TSC_ADJUST = 0x10, 0x3B
_VOLATILE: Final = frozenset((_TSC, 0x839, 0x40000010, 0x40000020))
"""TSC, the LAPIC timer's current count, Hyper-V's run time and reference counter: they are time."""


def differences(
    scenario: Scenario,
    one: Observation,
    other: Observation,
    on: str = "",
    strange: frozenset[int] = frozenset(),
) -> list[str]:
    """
    Return how two observations of a scenario differ, one line each; the first counts most.

    :param on: whose ways are let off: a key of ``LEFT_OUT``.
    :param strange: MSRs that the host sees on one side only.
    """
    blind = {f"msr {index:#x}" for index in strange}
    left, right = (
        [seen for seen in _seen(scenario, observation, on) if seen[0] not in blind]
        for observation in (one, other)
    )
    found, run = [], 0
    for (name, value), (other_name, other_value) in zip(left, right, strict=False):
        run += name in ("run", "flush")
        if name != other_name:
            return [*found, f"run {run}: {name} {value!r}, not {other_name} {other_value!r}"]
        if value != other_value:
            found += [f"run {run}: {line}" for line in _lines(name, value, other_value)]
    if len(left) != len(right):
        found.append(f"{len(left)} things seen, not {len(right)}")
    return found


def _lines(name: str, value: Any, other: Any) -> list[str]:
    if not isinstance(value, dict) or not isinstance(other, dict):
        return [f"{name}: {_text(value)}, not {_text(other)}"]
    return [
        f"{name}.{_text(key)}: {_text(value.get(key))}, not {_text(other.get(key))}"
        for key in sorted(value.keys() | other.keys(), key=str)
        if value.get(key) != other.get(key)
    ]


def _text(value: Any) -> str:
    return f"{value:#x}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _seen(scenario: Scenario, observation: Observation, on: str) -> Observation:
    seen = timeless(scenario, observation)
    return LEFT_OUT[on](scenario, seen) if on in LEFT_OUT else seen


# Time


def timeless(scenario: Scenario, observation: Observation) -> Observation:
    """Take out what depends on when something happened."""
    volatile = set(_VOLATILE)
    if any(one[1] == _TSC for one in scenario.instructions("wrmsr")):
        volatile.add(_TSC_ADJUST)  # it becomes the written value less the time of writing
    logged = {
        guest.LOG + 8 * number
        for number, one in enumerate(scenario.program)
        if one[0] == "rdmsr" and one[1] in volatile
    }

    def without_time(name: str, value: Any) -> tuple[str, Any]:
        if name.startswith("regs after "):
            if int(name.split()[-1], 16) in volatile:
                value = {**value, "rax": 0, "rdx": 0}
            return "regs", value
        if name.startswith("memory "):
            return name, {at: word for at, word in value.items() if int(at) not in logged}
        if name == "move get_msrs" or name.startswith("msr "):
            count, entries = value
            return name, [count, [[i, 0 if i in volatile else data] for i, data in entries]]
        return name, value

    return [without_time(name, value) for name, value in observation]


# What a KVM is known to do its own way

_RF, _IOPL = 1 << 16, 3 << 12
_SELECTOR: Final = 2  # in struct kvm_segment
_LARGE: Final = 1 << 18  # which RFLAGS is not


def _pvm(scenario: Scenario, observation: Observation) -> Observation:
    found = []
    for name, value in observation:
        if name == "regs" and scenario.mode == "user":
            # kvm_pvm runs CPL 3 on the hardware's: IOPL is kept from the guest's flags, and RF is
            # that of the #GP by which the hardware reported the instruction.
            value = {**value, "rflags": value["rflags"] & ~(_RF | _IOPL)}
        if name == "memory 0x8f00" and scenario.mode == "user":
            value = {
                at: word & ~(_RF | _IOPL) if word < _LARGE else word for at, word in value.items()
            }
        if name == "sregs" and scenario.mode == "user":
            # The SS of a handler in 64-bit mode is null, and what else there is to say of it is
            # nobody's business.
            value = {**value, "ss": value["ss"] if value["ss"][_SELECTOR] else 0}
        found.append((name, value))
    return found


def _amd(scenario: Scenario, observation: Observation) -> Observation:
    found = []
    for name, value in observation:
        if name == "regs":
            # QEMU ends RF at the end of a translated block only, not with the next instruction.
            value = {**value, "rflags": value["rflags"] & ~_RF}
        if name == "events" and value.startswith("00"):
            # An exception that does not wait tells who delivered the last, which QEMU decides.
            value = value[18:]
        if name.startswith("memory ") and scenario.mode == "user":
            # ... and what it reports of CPL 3 has lost it.
            value = {at: word & ~_RF if word < _LARGE else word for at, word in value.items()}
        found.append((name, value))
    return found


LEFT_OUT: Final[dict[str, Callable[[Scenario, Observation], Observation]]] = {
    "kvm_pvm": _pvm, "kvm_amd": _amd,
}  # fmt: skip
"""By the module of a KVM: what of an observation is left out."""
