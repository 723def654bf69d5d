# SPDX-License-Identifier: Apache-2.0
"""
kvmsr ctl
---------

Asks a running ``kvmsr exec``: another policy, the registers' state, the summary so far.
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
    Change the policy of a VMM that runs, save and load its registers.

    PID is the process of kvmsr exec, or of the VMM that it has started.
    """
    ctx.obj = pid


@command.command(epilog="Example: kvmsr ctl 4711 policy strict.toml")
@click.argument("file", type=PolicyFile())
@click.pass_obj
def policy(pid: int, file: str) -> None:
    """
    Let another policy hold from now on.

    Registers keep what they hold, and models of the same name and parameters, too; counts of
    conditions begin anew. If the policy has an error, the one before goes on.
    """
    load_policy(file)  # what is wrong with it is told from here
    name = file if file.startswith("preset:") else str(Path(file).resolve())
    for warning in ask(pid, {"do": "policy", "file": name})["warnings"]:
        echo(f"kvmsr: {warning}", err=True)


@command.command(epilog="Example: kvmsr ctl 4711 save before-update.json")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.pass_obj
def save(pid: int, file: Path) -> None:
    """
    Save what shadowed registers, models and counts hold.

    The VMM's own snapshots do not hold that. Stop the guest first, as for a snapshot.
    """
    answer = ask(pid, {"do": "save"})
    save_state(file, parse_state(str(answer["state"]).encode(), f"process {pid}"))


@command.command(epilog="Example: kvmsr ctl 4711 load before-update.json")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.pass_obj
def load(pid: int, file: Path) -> None:
    """Let the registers hold what was saved; stop the guest first."""
    ask(pid, {"do": "load", "state": load_state(file).as_json(), "file": str(file)})


@command.command(epilog="Example: kvmsr ctl 4711 reset")
@click.pass_obj
def reset(pid: int) -> None:
    """Let the registers be as when the VM was made: a VMM does not tell when its guest resets."""
    ask(pid, {"do": "reset"})


@command.command(epilog="Example: kvmsr ctl 4711 summary | jq .totals")
@click.pass_obj
def summary(pid: int) -> None:
    """Print, as JSON, what has come to user space so far."""
    answer: dict[str, Any] = ask(pid, {"do": "summary"})
    click.echo(json.dumps(answer, indent=2))
