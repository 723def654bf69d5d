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
from pathlib import Path
from typing import TYPE_CHECKING

from kvmsr.backend.soft import DEFAULT_PROFILE
from kvmsr.cli._console import TerminalLog, guest_input, guest_output
from kvmsr.cli._guest_options import GuestOptions
from kvmsr.cli._output import echo
from kvmsr.machine import Boot, Machine
from kvmsr.machine.arguments import to_seconds
from kvmsr.machine.choice import choose_backend
from kvmsr.msr import enumerated
from kvmsr.policy import Policy
from kvmsr.session import RunResult
from kvmsr.trace import TraceOptions

if TYPE_CHECKING:
    from kvmsr.trace.replay import Recorded  # numpy takes 0.1 s to import

__all__ = ("run_again",)


def run_again(
    image: Path,
    policy: Policy,
    options: GuestOptions,
    *,
    recorded: "Recorded",
    to_stderr: bool,
    begins: Callable[[Machine, Callable[[str], None]], None] = lambda machine, say: None,
    trace: TraceOptions | None = None,
) -> RunResult:
    """
    Run a guest, and return the result.

    :param policy: the policy. Its Python must be kvmsr's own: no supervisor watches over it.
    :param recorded: what was recorded. As far as its CPUID is known, the guest sees no features of
        MSRs now that it did not see then.
    :param to_stderr: whether the guest's output goes to standard error.
    :param begins: called before the guest runs, with the machine, and a function that shows a line
        on standard error.
    :param trace: how to record the run.
    """
    timeout = to_seconds(options.timeout, "--timeout")
    mode = None if options.mode is None else int(options.mode)
    boot = Boot(image, options.append, options.initrd, None, mode)
    profile = options.soft_profile or DEFAULT_PROFILE
    chosen, why_soft = choose_backend(options.backend, profile=profile)
    if why_soft:
        echo(f"kvmsr: on the soft backend: {why_soft}", err=True)
    seen = recorded.seen
    unseen = [] if seen is None else [one.name for one in enumerated() if one.name not in seen]
    with ExitStack() as stack:
        output = stack.enter_context(guest_output(options.serial, to_stderr=to_stderr))
        lines = TerminalLog(output, shared=options.serial == "-")
        stack.callback(lines.end)
        machine = stack.enter_context(
            Machine(
                chosen,
                policy=policy,
                memory=options.memory,
                cpus=recorded.vcpus() if options.cpus is None else options.cpus,
                hidden=[*(word.removeprefix("-") for word in options.hidden), *unseen],
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
