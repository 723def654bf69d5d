# SPDX-License-Identifier: Apache-2.0
"""
Summaries
---------

What a whole value says, in one line, where several fields make one answer: the mode of the APIC,
the range of an MTRR, a machine-check error. The catalog's data name them. Sources: SDM volume 3,
chapters on the APIC, memory cache control, machine checks and performance monitoring; APM volume 2,
6.1 (SYSCALL) and chapters 3 and 9.
"""

from collections.abc import Callable
from typing import Final

from kvmsr.msr.context import Context
from kvmsr.msr.forms import form_of
from kvmsr.msr.machine_check import error_code
from kvmsr.msr.units import sized

__all__ = ("SUMMARIES",)

_TYPES: Final = ("UC", "WC", "?", "?", "WT", "WP", "WB", "UC-")
_PATS: Final = {
    0x0007040600070406: "as at reset",
    0x0407050600070106: "as Linux sets it",
}
_EVENTS: Final = {
    (0x3C, 0x00): "core cycles",
    (0x3C, 0x01): "reference cycles",
    (0xC0, 0x00): "instructions retired",
    (0x2E, 0x4F): "last-level cache references",
    (0x2E, 0x41): "last-level cache misses",
    (0xC4, 0x00): "branches retired",
    (0xC5, 0x00): "mispredicted branches retired",
    (0xA4, 0x01): "top-down slots",
}
"""Architectural events of Intel's counters, by event and unit mask (SDM volume 3, chapter 20)."""
_EVENTS_AMD: Final = {
    0x76: "cycles not halted",
    0xC0: "instructions retired",
    0xC2: "branches retired",
    0xC3: "mispredicted branches retired",
}
"""Events that AMD's counters have had since family 10h, without a unit mask."""


def _apic_base(context: Context) -> str:
    on, x2apic, base = (context.number(name) for name in ("enable", "x2apic", "base"))
    if not on:
        return "not valid: x2APIC mode with the APIC off" if x2apic else "the APIC is off"
    mode = "x2APIC mode: MSRs 0x800 to 0x8ff" if x2apic else f"xAPIC mode: memory at {base:#x}"
    return f"{mode}, bootstrap processor" if context.number("bsp") else mode


def _efer(context: Context) -> str:
    return {
        (0, 0): "legacy mode",
        (1, 0): "long mode is enabled, not active: paging is off",
        (1, 1): "long mode is active",
        (0, 1): "not valid: long mode is active, but not enabled",
    }[context.number("lme"), context.number("lma")]


def _star(context: Context) -> str:
    call, back = context.value >> 32 & 0xFFFF, context.value >> 48
    return (
        f"SYSCALL: CS {call & ~3:#x}, SS {(call & ~3) + 8:#x};"
        f" SYSRET: CS {back + 16 | 3:#x} (64 bits) or {back | 3:#x} (32 bits), SS {back + 8 | 3:#x}"
    )


def _sysenter(context: Context) -> str:
    call = context.value & 0xFFFC
    if not call:
        return "SYSENTER faults"
    return (
        f"SYSENTER: CS {call:#x}, SS {call + 8:#x};"
        f" SYSEXIT: CS {call + 35:#x} (64 bits) or {call + 19:#x} (32 bits)"
    )


def _pat(context: Context) -> str:
    types = " ".join(_TYPES[context.value >> 8 * place & 7] for place in range(8))
    known = _PATS.get(context.value, "")
    return f"{types} ({known})" if known else types


def _mtrr(context: Context) -> str:
    kind = _TYPES[context.value & 7]
    base = context.number("base")
    name = context.msr.name.replace("PHYSBASE", "PHYSMASK")
    mask = context.other(name)
    if mask is None:
        return f"{kind} from {base:#x}; {name} has the size"
    if not mask & 1 << 11:
        return f"not in use: {name}.valid is 0"
    bits = mask & ~0xFFF
    size = bits & -bits
    if not size or (bits + size) & (bits + size - 1):
        return f"{kind}, not one range: {name} has gaps"
    return f"{kind} from {base:#x} to {base + size - 1:#x} ({sized(size)})"


def _machine_check(context: Context) -> str:
    if not context.number("val"):
        return "no error"
    parts = [_severity(context), error_code(context.value & 0xFFFF)]
    parts += ["the processor's context is corrupt"] if context.number("pcc") else []
    lost = context.number("over") or context.number("overflow")
    parts += ["another error was lost"] if lost else []
    return ": ".join(part for part in (parts[0], ", ".join(filter(None, parts[1:]))) if part)


def _severity(context: Context) -> str:
    if context.number("deferred"):
        return "deferred error"
    if not context.number("uc"):
        count = context.number("corrected")
        return f"corrected error ({count} times)" if count > 1 else "corrected error"
    if context.number("poison"):
        return "uncorrected error, poison consumed"
    if context.number("action_required") and not context.number("pcc"):
        return "uncorrected error, recoverable"
    return "uncorrected error"


def _counter(context: Context) -> str:
    number = context.number
    event = number("event") | number("event_high") << 8
    if "amd" in context.msr.vendors and "intel" not in context.msr.vendors:
        name = "" if number("umask") else _EVENTS_AMD.get(event, "")
    else:
        name = _EVENTS.get((event, number("umask")), "")
    if not name:
        name = f"event {event:#x}, unit mask {number('umask'):#x}"
    if not number("enable"):
        return f"off ({name})"
    rings = {(1, 1): "", (1, 0): " above CPL 0", (0, 1): " at CPL 0", (0, 0): " nowhere"}
    return f"counts {name}{rings[number('usr'), number('os')]}"


def _pstate(context: Context) -> str:
    if not context.number("enabled"):
        return "there is no such P-state"
    fields = {field.name: field for field in context.msr.fields}
    said = [
        form_of(fields[name]).read(context.number(name), fields[name], context).meaning
        for name in ("fid", "vid")
        if name in fields
    ]
    return " at ".join(part for part in said if part)


def _tsc_ratio(context: Context) -> str:
    return f"the guest's TSC runs at {context.value / (1 << 32):.9g} times the host's rate"


SUMMARIES: Final[dict[str, Callable[[Context], str]]] = {
    "": lambda context: "",
    "apic-base": _apic_base,
    "efer": _efer,
    "star": _star,
    "sysenter": _sysenter,
    "pat": _pat,
    "mtrr": _mtrr,
    "machine-check": _machine_check,
    "counter": _counter,
    "amd-pstate": _pstate,
    "tsc-ratio": _tsc_ratio,
}
"""The summaries, by the names that the catalog's data use."""
