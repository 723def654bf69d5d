# SPDX-License-Identifier: Apache-2.0
"""
kvmsr top
---------

Shows a run of ``kvmsr run`` or ``kvmsr exec`` as it goes on.
"""

import click

from kvmsr.cli._parameters import Target
from kvmsr.cli._view import need_terminal
from kvmsr.errors import UsageError

__all__ = ("command",)

_EXAMPLES = """\b
Examples:
  kvmsr top            # the run that there is, or a list to choose from
  kvmsr top web1
"""


@click.command("top", epilog=_EXAMPLES)
@click.argument("target", type=Target(), metavar="[PID|NAME]", required=False)
def command(target: str | None) -> None:
    """
    Watch a run, and change what happens to its MSRs.

    PID is the process ID of kvmsr run, of kvmsr exec, or of a VMM that the latter has started; NAME
    is what was given with --name. There is a line for each MSR, with its rate, values, faults and
    the last minute. A change of what happens to it can be undone, and written out as a policy file.
    The keys are at the bottom of the screen.
    """
    need_terminal("top")
    from kvmsr.session.control import ask, runs

    found = []
    if target is None:
        found = list(runs())
        if not found:
            raise UsageError("nothing of yours runs under kvmsr: start kvmsr run or kvmsr exec")
        if len(found) == 1:
            target = str(found[0]["pid"])
    else:
        ask(target, {"do": "status"})
    from kvmsr.live.app import LiveApp

    LiveApp(target or "", runs=found).run()
