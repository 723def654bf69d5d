# SPDX-License-Identifier: Apache-2.0
"""
kvmsr trace replay
------------------

Runs a guest with the answers that a trace has.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from kvmsr.cli._guest_options import MOST_SHOWN, GuestOptions, guest_options
from kvmsr.cli._output import print_json
from kvmsr.text import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvmsr.machine import Machine
    from kvmsr.trace.replay import Divergence

__all__ = ("replay",)

_PATH = click.Path(path_type=Path)

_DIVERGED: Final = 6
"""The exit status of a run that a policy stopped, or whose policy failed."""


@click.command(epilog="Example: kvmsr trace replay boot.arrows vmlinuz --append console=ttyS0")
@click.argument("file", type=_PATH)
@click.argument("image", type=_PATH)
@click.option("--strict", is_flag=True, help="End the run at the first divergence.")
@guest_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def replay(file: Path, image: Path, strict: bool, as_json: bool, **options: Any) -> int:
    """
    Run a guest with the recorded answers.

    FILE is a trace of `kvmsr run` or `kvmsr exec`. The guest in IMAGE gets the answers in it, in
    order by vCPU, MSR and direction. A divergence is an access that was not recorded next: another
    value written, one more than there were, or an MSR that was never accessed. Each is shown with
    both sides. The guest then gets what was recorded next, or last, or #GP.

    The exit status is that of the guest, as for `kvmsr run`, or 6 if there was a divergence.
    """
    from kvmsr.cli._again import run_again
    from kvmsr.trace.replay import Recorded, Replay

    recorded = Recorded(file)
    stage = _Stage(strict=strict)
    answers = Replay(recorded, stage.diverged, stage.stop)
    given = GuestOptions(**options)
    result = run_again(
        image,
        recorded.policy(answers, f"the replay of {file}"),
        given,
        recorded=recorded,
        to_stderr=as_json,
        begins=stage.begins,
    )
    stage.end(answers.diverged)
    line = (
        f"replayed {counted(answers.answered, 'access', 'accesses')} of {file}:"
        f" {counted(answers.diverged, 'divergence')}"
    )
    if answers.left:
        line += f"; {counted(answers.left, 'recorded access', 'recorded accesses')} did not happen"
    result = replace(result, notes=(*recorded.notes, *result.notes, line))
    if as_json:
        replayed = {
            "trace": str(file),
            "answered": answers.answered,
            "divergences": answers.diverged,
            "first": [one.as_dict() for one in answers.divergences],
            "left": answers.left,
        }
        print_json({**result.as_dict(), "replay": replayed})
    else:
        from kvmsr.cli._table import print_result

        print_result(result)
    return _DIVERGED if answers.diverged else result.exit_status


class _Stage:
    """
    Shows divergences while the guest runs.

    :param strict: whether the first one ends the run.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._machine: Machine | None = None
        self._say: Callable[[str], None] = lambda line: None
        self._shown = 0

    def begins(self, machine: "Machine", say: "Callable[[str], None]") -> None:
        """Note the machine that is about to run."""
        self._machine, self._say = machine, say

    def diverged(self, found: "Divergence") -> None:
        """Show a divergence, unless there were many; end the run if that is wanted."""
        self._shown += 1
        if self._shown <= MOST_SHOWN:
            self._say(f"divergence: {found}")
        if self._strict:
            self.stop(f"the replay diverged: {found}")

    def stop(self, why: str) -> None:
        """End the run."""
        from kvmsr.session import End, EndKind

        if self._machine is not None:
            self._machine.end(End(EndKind.STOP, _DIVERGED, why))

    def end(self, total: int) -> None:
        """Say how many divergences were not shown."""
        if total > MOST_SHOWN:
            self._say(f"… and {total - MOST_SHOWN:,} more divergences")
