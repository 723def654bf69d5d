# SPDX-License-Identifier: Apache-2.0
"""
Options of guests
-----------------

The options that say how to run a guest again, for the commands that compare it with a trace. They
import the machine when they run it, not for their help.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from kvmsr.cli._parameters import MemorySize

__all__ = ("MOST_SHOWN", "GuestOptions", "guest_options")

MOST_SHOWN: Final = 20
"""How many differences are shown; all are counted."""

_PATH: Final = click.Path(path_type=Path)
_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS: Final = (
    click.option(
        "--backend",
        type=click.Choice(["auto", "kvm", "soft"]),
        default="auto",
        show_default=True,
        help="What executes the guest, as for kvmsr run.",
    ),
    click.option("--soft-profile", metavar="NAME",
                 help="The kernel that the soft backend models; by default, as for kvmsr run."),
    click.option("--cpus", type=int, help="The number of vCPUs; by default, as in the trace."),
    click.option("--memory", type=MemorySize(), default="256M", show_default=True,
                 help="The amount of RAM."),
    click.option("--append", default="", help="The kernel's command line."),
    click.option("--initrd", type=_PATH, multiple=True, help="An initial RAM disk, or a module."),
    click.option("--mode", type=click.Choice(["16", "32", "64"]),
                 help="Start IMAGE, a flat binary, in this mode."),
    click.option("--cpu-feature", "hidden", multiple=True, metavar="-NAME",
                 help="Hide a CPUID feature."),
    click.option("--serial", default="-", metavar="FILE|-", show_default=True,
                 help="Where to write the output of the guest's serial line."),
    click.option("--timeout", type=float, metavar="S", help="End the run after S seconds."),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestOptions:
    """
    The options of :func:`guest_options`; see ``kvmsr run``.

    :ivar cpus: number of vCPUs; None for as many as the trace has.
    """

    backend: str
    soft_profile: str | None
    cpus: int | None
    memory: int
    append: str
    initrd: tuple[Path, ...]
    mode: str | None
    hidden: tuple[str, ...]
    serial: str
    timeout: float | None


def guest_options(command: _Command) -> _Command:
    """Add the options that say how a guest is run."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
