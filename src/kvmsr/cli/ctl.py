# SPDX-License-Identifier: Apache-2.0
"""
kvmsr ctl
---------

Controls a run of ``kvmsr run`` or ``kvmsr exec``: its policy, the state of its registers, its end.

What talks to the run is imported by the commands that do so, so that help is fast.
"""

from pathlib import Path
from typing import Any

import click

from kvmsr.cli._output import echo, print_json
from kvmsr.cli._parameters import CTL_COMMANDS, PolicyFile, Target
from kvmsr.errors import UsageError
from kvmsr.text import counted

__all__ = ("command",)

_EXAMPLES = """\b
Examples:
  kvmsr ctl                            # list what runs
  kvmsr ctl 4711 policy strict.toml
  kvmsr ctl web1 undo
  kvmsr ctl web1 save before-update.json
"""

_JSON = click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
_STATE = click.Path(path_type=Path, dir_okay=False)


class _Target(Target):
    """A run, if it was not forgotten."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return *value*, unless it is a command, and the run was forgotten."""
        if value in CTL_COMMANDS:
            raise UsageError(f"ctl {value}: of which run? Write kvmsr ctl PID {value}, or its name")
        return str(value)


@click.group("ctl", epilog=_EXAMPLES, invoke_without_command=True)
@click.argument("target", type=_Target(), metavar="[PID|NAME]", required=False)
@_JSON
@click.pass_context
def command(ctx: click.Context, target: str | None, as_json: bool) -> None:
    """
    Control what runs: replace its policy, save and restore registers, stop it.

    PID is the process ID of kvmsr run, of kvmsr exec, or of a VMM that the latter has started; NAME
    is what was given with --name. Without either, this lists your runs.
    """
    if target is None:
        _list(as_json)
    elif ctx.invoked_subcommand is None:
        raise UsageError(f"ctl {target}: say what to do; kvmsr ctl --help lists the commands")
    ctx.obj = target


_STATUS = {
    "pid", "name", "kind", "command", "started", "backend", "policy", "policy_since",
    "replacements", "vms", "vcpus", "accesses",
}  # fmt: skip
_NEEDS = {
    "policy": {"warnings"},
    "show": {"source", "since", "toml", "policy"},
    "undo": {"warnings", "policy"},
    "status": _STATUS,
    "save": {"state"},
    "stop": {"pid"},
}
"""What the answer to a request must have. Another version of kvmsr may answer."""


def _ask(target: str, **request: Any) -> dict[str, Any]:
    from kvmsr.session.control import ask

    return ask(target, request, _NEEDS.get(request["do"], ()))


def _list(as_json: bool) -> None:
    from kvmsr.session.control import runs

    found = [one for one in runs() if one.keys() >= _STATUS]
    if as_json:
        print_json({"schema": 1, "runs": found})
        return
    rows = [
        [str(one["pid"]), one["name"] or "-", one["kind"], one["policy"] or "-", one["command"]]
        for one in found
    ]
    if not rows:
        echo("Nothing of yours runs under kvmsr.")
        return
    for row in _aligned([["PID", "NAME", "BY", "POLICY", "COMMAND"], *rows]):
        echo(row)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Return rows of cells as lines, with all columns but the last one padded."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        echo(f"kvmsr: {warning}", err=True)


@command.command(epilog="Example: kvmsr ctl 4711 policy strict.toml")
@click.argument("file", type=PolicyFile())
@click.pass_obj
def policy(target: str, file: str) -> None:
    """
    Replace the policy, from the next access on.

    Shadowed registers keep their values, and so do models that both policies use with the same
    parameters; conditions count from 0 again. If FILE has an error, nothing changes.
    """
    name = file if file.startswith("preset:") else str(Path(file).absolute())
    _warn(_ask(target, do="policy", file=name)["warnings"])


@command.command(epilog="Example: kvmsr ctl 4711 show > in-force.toml")
@_JSON
@click.pass_obj
def show(target: str, as_json: bool) -> None:
    """Show the policy in force, with everything that it extends resolved."""
    answer = _ask(target, do="show")
    if as_json:
        print_json({key: answer[key] for key in answer if key != "toml"})
        return
    echo(f"# {answer['source'] or 'no policy file'}, in force since {answer['since']}")
    click.echo(answer["toml"], nl=False)


@command.command(epilog="Example: kvmsr ctl 4711 undo")
@click.pass_obj
def undo(target: str) -> None:
    """
    Return to the policy before the one in force.

    This can be repeated, up to 16 policies back. Registers and models keep their values.
    """
    answer = _ask(target, do="undo")
    _warn(answer["warnings"])
    echo(f"in force again: {answer['policy'] or 'the empty policy'}")


@command.command(epilog="Example: kvmsr ctl 4711 status --json | jq .accesses")
@_JSON
@click.pass_obj
def status(target: str, as_json: bool) -> None:
    """Show what runs, under which policy, and how many accesses there were."""
    answer = _ask(target, do="status")
    if as_json:
        print_json(answer)
        return
    rows = [
        ["process", f"{answer['pid']}, kvmsr {answer['kind']}, since {answer['started']}"],
        ["name", answer["name"] or "-"],
        ["command", answer["command"]],
        ["backend", answer["backend"]],
        ["policy", f"{answer['policy'] or '-'}, since {answer['policy_since']}"],
        ["replaced", counted(answer["replacements"], "time")],
        ["VMs", f"{answer['vms']:,}, with {counted(answer['vcpus'], 'vCPU')}"],
        ["accesses", f"{answer['accesses']:,}"],
    ]
    for row in _aligned(rows):
        echo(row)


@command.command(epilog="Example: kvmsr ctl 4711 save before-update.json")
@click.argument("file", type=_STATE)
@click.pass_obj
def save(target: str, file: Path) -> None:
    """
    Save shadowed registers, models and counts to FILE.

    Under kvmsr exec, the VMM's own snapshots do not include them; stop the guest first, as for a
    snapshot. kvmsr run holds its guest meanwhile.
    """
    answer = _ask(target, do="save")
    from kvmsr.session import parse_state, save_state

    save_state(file, parse_state(str(answer["state"]).encode(), target))


@command.command(epilog="Example: kvmsr ctl 4711 load before-update.json")
@click.argument("file", type=_STATE)
@click.pass_obj
def load(target: str, file: Path) -> None:
    """
    Restore registers, models and counts from FILE.

    Under kvmsr exec, stop the guest first. If FILE does not fit the policy, nothing changes.
    """
    from kvmsr.session import load_state

    _ask(target, do="load", state=load_state(file).as_json(), file=str(file))


@command.command(epilog="Example: kvmsr ctl 4711 reset")
@click.pass_obj
def reset(target: str) -> None:
    """
    Reset registers and models, as when the VM was created.

    If the guest is reset under kvmsr exec, that happens by itself.
    """
    _ask(target, do="reset")


@command.command(epilog="Example: kvmsr ctl 4711 summary | jq .totals")
@click.pass_obj
def summary(target: str) -> None:
    """Print the summary so far, as JSON."""
    print_json(_ask(target, do="summary"))


@command.command(epilog="Example: kvmsr ctl 4711 stop")
@click.pass_obj
def stop(target: str) -> None:
    """
    End the run, as a rule that says stop does, and wait until it has ended.

    Its exit status is 6.
    """
    pid = int(_ask(target, do="stop")["pid"])
    from kvmsr.session.control import wait_for_end

    if not wait_for_end(pid):
        raise UsageError(f"process {pid} was asked to stop, and has not ended after 30 seconds")
