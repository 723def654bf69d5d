# SPDX-License-Identifier: Apache-2.0
"""
Tables
------

Prints the summary of a run, and policies.
"""

import sys
from functools import partial
from typing import Final, TextIO

from rich.console import Console
from rich.table import Table

from kvmsr.cli._output import cell
from kvmsr.policy import Policy
from kvmsr.policy.file.toml import action_text, msr_names, policy_tables
from kvmsr.session import EndKind, LastAccess, Position, RunResult, VmReport
from kvmsr.text import counted
from kvmsr.trace import Row

__all__ = ("print_policy", "print_positions", "print_result")

_WIDE: Final = 200
_GOOD: Final = (EndKind.HALT, EndKind.RESET, EndKind.POWEROFF, EndKind.SHUTDOWN, EndKind.VMM)
_VCPUS: Final = 16
"""Whose positions are shown at most."""
_OTHER_KEYS: Final = ("reset", "bits", "scope", "keep", "when", "log")
_DEBUG_EXIT: Final = "isa-debug-exit"
_ENDED_WITH_0: Final = 1
"""The exit status 2v+1 for v = 0, which by convention means success."""


def print_result(result: RunResult, file: TextIO | None = None) -> None:
    """Print the table of accesses and how the run ended, by default to standard output."""
    file = file or sys.stdout
    console = Console(file=file, highlight=False, width=None if file.isatty() else _WIDE)
    say = partial(console.print, soft_wrap=True)
    for loss in result.losses:
        say(f"[red]not under the policy:[/red] {cell(loss)}")
    if len(result.summary):
        console.print(_table(result))
    elif not result.lost:
        say("No MSR access of the guest reached user space.")
    rest = result.summary.rest()
    if rest:
        say(rest)
    if not result.lost:
        say(_totals(result))
    for vm in result.vms if len(result.vms) > 1 else ():
        say(_vm(vm))
    for note in result.notes:
        say(f"note: {cell(note)}")
    for failure in result.failures:
        say(
            f"[red]handler {cell(failure.handler)} failed[/red] ({cell(failure.rule)}) at a"
            f" {failure.access}: {cell(failure.message)}"
        )
    more = result.failure_count - len(result.failures)
    if more > 0:
        say(f"[red]… and {counted(more, 'more handler failure')}[/red]")
    say(_ending(result))


def print_positions(result: RunResult) -> None:
    """Print where the guest was, to standard error, if it did not end the run itself."""
    if not result.positions:
        return
    console = Console(stderr=True, highlight=False)
    say = partial(console.print, soft_wrap=True)
    for place in result.positions[:_VCPUS]:
        head = f"vCPU {place.vcpu}"
        say(f"{head}  {cell(_position(place))}")
        for what, access in (("port", place.port), ("memory", place.memory)):
            if access is not None:
                say(f"{' ' * len(head)}  last {what:6} {cell(_access(access))}")
    more = len(result.positions) - _VCPUS
    if more > 0:
        say(f"… and {counted(more, 'more vCPU')}: --json has all")
    if result.last_line:
        say(f"last line of output: {cell(result.last_line)}")


def _position(place: Position) -> str:
    if place.problem:
        return place.problem
    at = f"RIP {place.rip:#x}"
    if place.linear != place.rip:
        at += f" (linear {place.linear:#x})"
    masked = "" if place.interrupts else ", interrupts off"
    where = f"{place.mode} mode, {place.bits}-bit code, CPL {place.cpl}, {place.state}{masked}"
    return f"{at}{f' {place.symbol}' if place.symbol else ''}, {where}"


def _access(access: LastAccess) -> str:
    verb = "write" if access.write else "read"
    value = f"{access.value:#0{2 + 2 * access.size}x}"
    return f"{verb:5} {access.address:#x} {value} ({access.device or 'no device there'})"


def _ending(result: RunResult) -> str:
    end, why = result.end, ""
    is_good = end.kind in _GOOD and end.code == 0
    if result.exit_status != end.code:
        why = ": a handler failed" if result.failure_count else ": see the first line"
    elif _is_debug_exit(result):
        why = ": a debug exit with v gives 2v+1"
        is_good = end.code == _ENDED_WITH_0
    colour = "green" if is_good else "yellow"
    detail = f": {cell(end.detail)}" if end.detail else ""
    return f"[{colour}]{end.kind}[/{colour}]{detail} (exit status {result.exit_status}{why})"


def _vm(vm: VmReport) -> str:
    vcpus, accesses = counted(vm.vcpus, "vCPU"), counted(vm.accesses, "access", "accesses")
    resets = f", {counted(vm.resets, 'reset')}" if vm.resets else ""
    return f"VM of {cell(vm.process)} ({vm.pid}): {vcpus}, {accesses}{resets}"


def _is_debug_exit(result: RunResult) -> bool:
    """Return whether the exit status comes from a debug exit, which makes it odd."""
    if result.end.kind is EndKind.VMM:
        return _DEBUG_EXIT in result.image and result.end.code & 1 == 1
    return result.end.kind is EndKind.DEBUG_EXIT


def _table(result: RunResult) -> Table:
    table = Table(title="MSR accesses", title_justify="left", header_style="bold")
    table.add_column("index", justify="right", no_wrap=True)
    table.add_column("name", overflow="fold")
    table.add_column("op")
    table.add_column("count", justify="right")
    table.add_column("reason")
    table.add_column("rule", overflow="fold")
    table.add_column("outcome")
    table.add_column("last value", justify="right", overflow="fold")
    table.add_column("first RIP", justify="right", overflow="fold")
    for row in result.summary:
        values = row.as_dict()
        table.add_row(
            values["index"],
            values["name"],
            values["op"],
            f"{row.count:,}",
            values["reason"],
            cell(row.rule),
            _outcome(row),
            values["last_value"] or "",
            values["first_rip"] or "",
        )
    return table


def _outcome(row: Row) -> str:
    counts = (("value", row.values), ("done", row.dones), ("[red]fault[/red]", row.faults))
    present = [(name, count) for name, count in counts if count]
    if not present:
        return "stop"
    if len(present) == 1:
        return present[0][0]
    return ", ".join(f"{name} {count:,}" for name, count in present)


def _totals(result: RunResult) -> str:
    totals = result.summary.totals()
    counts = ", ".join(counted(totals[f"{what}s"], what) for what in ("read", "write", "fault"))
    return f"{counts} in {result.wall_s:.2f} s on {result.backend}"


def print_policy(policy: Policy) -> None:
    """Print a table of the rules of *policy* and a line for each default, to standard output."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    say = partial(console.print, soft_wrap=True)
    for text in (policy.name, policy.description):
        if text:
            say(cell(text))
    table = Table(title="Rules, in the order in which they are tried", title_justify="left")
    for column in ("rule", "MSRs", "read", "write", "other keys"):
        table.add_column(column, overflow="fold")
    for rule, more in zip(policy.rules, policy_tables(policy)["rule"], strict=True):
        spans = ", ".join(f"{a:#x}" if a == b else f"{a:#x}-{b:#x}" for a, b in rule.msrs[:4])
        if len(rule.msrs) > 4:
            spans += f" and {len(rule.msrs) - 4} more"
        names = msr_names(rule, 2)
        said = {key: more[key] for key in _OTHER_KEYS if key in more}
        table.add_row(
            cell(rule.where),
            cell(f"{spans} {names}".strip()),
            cell(action_text(rule.read)),
            cell(action_text(rule.write)),
            cell(
                ", ".join(
                    f"{k} = {v:#x}" if k == "reset" else f"{k} = {v}" for k, v in said.items()
                )
            ),
        )
    if policy.rules:
        console.print(table)
    defaults = policy.defaults
    say(
        f"defaults: unknown = {defaults.unknown}, invalid = {defaults.invalid},"
        f" on_error = {defaults.on_error}"
    )
    topology = policy.topology
    cores = "every core in one package"
    if topology.cores_per_package is not None:
        cores = f"{topology.cores_per_package} cores per package"
    say(f"topology: {topology.threads_per_core} threads per core, {cores}")
