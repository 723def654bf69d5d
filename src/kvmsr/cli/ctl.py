# SPDX-License-Identifier: Apache-2.0
"""
kvmsr ctl
---------

Controls a running ``kvmsr exec``: its policy, the state of its registers, its summary.
"""

import json
from pathlib import Path
from typing import Any

import click

from kvmsr.attach import ask
from kvmsr.cli._output import echo
from kvmsr.cli._parameters import PolicyFile
from kvmsr.policy.file import load_policy
from kvmsr.session import load_state, parse_state, save_state

__all__ = ("command",)

_EXAMPLES = """\b
Examples:
  kvmsr ctl 4711 policy strict.toml
  kvmsr ctl 4711 save before-update.json
"""


@click.group("ctl", epilog=_EXAMPLES)
@click.argument("pid", type=click.IntRange(min=1))
@click.pass_context
def command(ctx: click.Context, pid: int) -> None:
    """
    Change the policy of a running VMM; save and restore registers.

    PID is the process ID of kvmsr exec, or of the VMM that it has started.
    """
    ctx.obj = pid


@command.command(epilog="Example: kvmsr ctl 4711 policy strict.toml")
@click.argument("file", type=PolicyFile())
@click.pass_obj
def policy(pid: int, file: str) -> None:
    """
    Replace the policy.

    Shadowed registers keep their values, and so do models that both policies use with the same
    parameters; conditions count from 0 again. If FILE has an error, nothing changes.
    """
    load_policy(file)  # reports its errors here
    name = file if file.startswith("preset:") else str(Path(file).resolve())
    for warning in ask(pid, {"do": "policy", "file": name})["warnings"]:
        echo(f"kvmsr: {warning}", err=True)


@command.command(epilog="Example: kvmsr ctl 4711 save before-update.json")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_obj
def save(pid: int, file: Path) -> None:
    """
    Save shadowed registers, models and counts to FILE.

    The VMM's own snapshots do not include them. Stop the guest first, as for a snapshot.
    """
    answer = ask(pid, {"do": "save"})
    save_state(file, parse_state(str(answer["state"]).encode(), f"process {pid}"))


@command.command(epilog="Example: kvmsr ctl 4711 load before-update.json")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.pass_obj
def load(pid: int, file: Path) -> None:
    """Restore registers, models and counts from FILE. Stop the guest first."""
    ask(pid, {"do": "load", "state": load_state(file).as_json(), "file": str(file)})


@command.command(epilog="Example: kvmsr ctl 4711 reset")
@click.pass_obj
def reset(pid: int) -> None:
    """
    Reset registers, models and counts.

    kvmsr cannot see when the VMM resets its guest: do this then.
    """
    ask(pid, {"do": "reset"})


@command.command(epilog="Example: kvmsr ctl 4711 summary | jq .totals")
@click.pass_obj
def summary(pid: int) -> None:
    """Print the summary so far, as JSON."""
    answer: dict[str, Any] = ask(pid, {"do": "summary"})
    click.echo(json.dumps(answer, indent=2))
