# SPDX-License-Identifier: Apache-2.0
"""
Names of MSRs
-------------

Lets a command speak of one CPU: all names of MSRs that it prints are those that they have there.
"""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from kvmsr.cli._parameters import CpuSpec
from kvmsr.errors import TraceError
from kvmsr.msr import Cpu, catalog

if TYPE_CHECKING:
    from kvmsr.kvm import CpuidTable
    from kvmsr.trace.file import Head

__all__ = ("NAMES", "NAMES_OF_GUEST", "speak_of_guest", "speak_of_recorded", "speak_of_trace")

_CHOSEN: Final = "kvmsr.cpu"
"""Where click's context has the CPU that --cpu names."""
_HELP: Final = (
    "Name MSRs as on this CPU: intel:06_8F, a code name such as sapphire-rapids or zen4, host, or"
    " a file with a CPUID dump."
)


def _choose(context: click.Context, parameter: click.Parameter, cpu: Cpu | None) -> None:
    context.meta[_CHOSEN] = catalog().cpu = cpu
    context.call_on_close(_forget)


def _forget() -> None:
    catalog().cpu = None


NAMES: Final = click.option(
    "--cpu", type=CpuSpec(), metavar="CPU", expose_value=False, callback=_choose, help=_HELP
)
NAMES_OF_GUEST: Final = click.option(
    "--cpu",
    type=CpuSpec(),
    metavar="CPU",
    expose_value=False,
    callback=_choose,
    help=f"{_HELP} By default, the guest's CPU, if it is known.",
)


def speak_of_guest(cpuid: "CpuidTable") -> None:
    """Let names be those on the CPU that *cpuid* shows, unless --cpu names another."""
    leaf = cpuid.find(1)
    _speak_of(None if leaf is None else Cpu.from_cpuid(cpuid.vendor, leaf.eax))


def speak_of_recorded(head: "Head") -> None:
    """Let names be those on the guest's CPU in a trace, unless --cpu names another."""
    _speak_of(head.guest_cpu)


def speak_of_trace(path: Path) -> None:
    """Do the same for the trace at *path*, if it can be read twice; whoever reads it complains."""
    from kvmsr.trace.file import Trace

    if path.is_file():
        with suppress(TraceError, OSError), Trace(path) as trace:
            speak_of_recorded(trace.head)


def _speak_of(cpu: Cpu | None) -> None:
    context = click.get_current_context(silent=True)
    if context is None or context.meta.get(_CHOSEN) is None:
        catalog().cpu = cpu
        if context is not None:
            context.call_on_close(_forget)
