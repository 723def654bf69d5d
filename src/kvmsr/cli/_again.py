# SPDX-License-Identifier: Apache-2.0
"""
Running a guest again
---------------------

Runs a guest under what a trace says, for the commands that compare the two.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from kvmsr import backend as backends
from kvmsr.backend.soft import DEFAULT_PROFILE
from kvmsr.cli._console import TerminalLog, guest_input, guest_output
from kvmsr.cli._output import echo
from kvmsr.cli._parameters import MemorySize
from kvmsr.machine import Boot, Machine
from kvmsr.machine.arguments import to_seconds
from kvmsr.machine.choice import choose_backend
from kvmsr.policy import Policy
from kvmsr.session import RunResult
from kvmsr.trace import TraceOptions

__all__ = ("MOST_SHOWN", "GuestOptions", "guest_options", "run_again")

MOST_SHOWN: Final = 20
"""How many differences are shown; all are counted."""

_PATH: Final = click.Path(path_type=Path)
_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS: Final = (
    click.option(
        "--backend",
        type=click.Choice(backends.NAMES),
        default="auto",
        show_default=True,
        help="What executes the guest, as for kvmsr run.",
    ),
    click.option("--soft-profile", metavar="NAME", default=DEFAULT_PROFILE, show_default=True,
                 help="The kernel that the soft backend models."),
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
    soft_profile: str
    cpus: int | None
    memory: int
    append: str
    initrd: tuple[Path, ...]
    mode: str | None
    hidden: tuple[str, ...]
    serial: str
    timeout: float | None

    def boot(self, image: Path) -> Boot:
        """Return what to boot."""
        mode = None if self.mode is None else int(self.mode)
        return Boot(image, self.append, self.initrd, None, mode)


def guest_options(command: _Command) -> _Command:
    """Add the options that say how a guest is run."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def run_again(
    image: Path,
    policy: Policy,
    options: GuestOptions,
    *,
    vcpus: int,
    to_stderr: bool,
    begins: Callable[[Machine, Callable[[str], None]], None] = lambda machine, say: None,
    trace: TraceOptions | None = None,
) -> RunResult:
    """
    Run a guest, and return the result.

    :param policy: the policy. Its Python must be kvmsr's own: no supervisor watches over it.
    :param vcpus: number of vCPUs that the trace has.
    :param to_stderr: whether the guest's output goes to standard error.
    :param begins: called before the guest runs, with the machine, and a function that shows a line
        on standard error.
    :param trace: how to record the run.
    """
    timeout = to_seconds(options.timeout, "--timeout")
    boot = options.boot(image)
    chosen, why_soft = choose_backend(options.backend, profile=options.soft_profile)
    if why_soft:
        echo(f"kvmsr: on the soft backend: {why_soft}", err=True)
    with ExitStack() as stack:
        output = stack.enter_context(guest_output(options.serial, to_stderr=to_stderr))
        lines = TerminalLog(output, shared=options.serial == "-")
        stack.callback(lines.end)
        machine = stack.enter_context(
            Machine(
                chosen,
                policy=policy,
                memory=options.memory,
                cpus=vcpus if options.cpus is None else options.cpus,
                hidden=[word.removeprefix("-") for word in options.hidden],
                output=lines.output,
                trace=trace,
            )
        )
        machine.load(boot)
        begins(machine, lambda line: lines.log(None, None, line))
        stack.enter_context(_terminated_as_interrupted())
        stack.enter_context(guest_input(machine.board.uart))
        result = machine.run(timeout)
    sys.stdout.flush()
    return result


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end a run like Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
