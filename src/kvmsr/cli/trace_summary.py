# SPDX-License-Identifier: Apache-2.0
"""
kvmsr trace summary
-------------------

Summarises traces by MSR.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmsr.cli._names import NAMES_OF_GUEST, speak_of_recorded
from kvmsr.cli._output import cell, print_json
from kvmsr.cli._traces import (
    JSON,
    SYMBOLS,
    TRACES,
    about,
    dropped_text,
    place,
    report_cut,
)
from kvmsr.text import counted, duration

if TYPE_CHECKING:
    from kvmsr.symbols import Symbols
    from kvmsr.trace.analysis import TraceRow, TraceSummary

__all__ = ("summary",)

_WIDE = 220

_EXAMPLES = """\b
Examples:
  kvmsr trace summary boot.arrows
  kvmsr trace summary --by vcpu boot.arrows
  kvmsr trace summary --json boot.arrows | jq '.traces[0].totals'
"""


@click.command(epilog=_EXAMPLES)
@TRACES
@click.option(
    "--by", type=click.Choice(["msr", "vcpu"]), default="msr", show_default=True,
    help="Whether each vCPU has rows of its own.",
)  # fmt: skip
@SYMBOLS
@NAMES_OF_GUEST
@JSON
def summary(files: tuple[Path, ...], by: str, symbols: Path | None, as_json: bool) -> None:
    """
    Summarise traces by MSR.

    There is a row for each MSR, direction, reason and rule: how often, with which outcomes and
    values, when (on the guest's clock), how long each access took in user space (percentiles, to
    within 3 %), and where the guest was if the trace has that. If it has callers, there is a row
    for each function that asked: with --symbols the first one that does not access MSRs for others,
    or else the first caller. Several traces have a table each; kvmsr trace diff compares two.
    """
    from kvmsr.symbols import Symbols
    from kvmsr.trace.analysis import summarise
    from kvmsr.trace.file import Trace

    functions = None if symbols is None else Symbols.read(symbols)
    found = []
    for path in files:
        with Trace(path) as trace:
            speak_of_recorded(trace.head)
            one = summarise(trace, by_vcpu=by == "vcpu")
        if functions is not None:
            place(path, functions, (where.rip for where in one.paths.known), one.head)
        if as_json:
            found.append({"file": str(path), **_named(one.as_dict(functions), functions)})
        else:
            _print(path, one, functions)
        report_cut(path, one.cut)
    if as_json:
        print_json({"schema": 1, "traces": found})


def _named(said: dict[str, Any], functions: "Symbols | None") -> dict[str, Any]:
    """Add the names of functions to a summary in JSON's form."""
    if functions is not None:
        for row in said["accesses"]:
            for one in row["rips"]:
                one["symbol"] = functions.name(int(one["rip"], 16))
                for caller in one["callers"]:
                    caller["symbol"] = functions.caller(int(caller["address"], 16))
    return said


def _print(path: Path, summary: "TraceSummary", functions: "Symbols | None") -> None:
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)
    rows = summary.rows(functions)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    say(f"[bold]{cell(about(path, summary.head))}[/bold]")
    if rows:
        console.print(_table(rows, functions))
    else:
        say("There is no access in it.")
    if summary.rest():
        say(summary.rest())
    totals = summary.totals()
    say(", ".join(counted(totals[f"{what}s"], what) for what in ("read", "write", "fault")))
    latency = summary.latency()
    if latency:
        said = ", ".join(f"p{one} {duration(value)}" for one, value in latency.items())
        say(f"latency of an access in user space: {said}")
    for line in summary.head.left_out():
        say(cell(f"{line}; --json has the reasons"))
    if summary.dropped:
        say(f"[red]{dropped_text(summary.dropped)}[/red]")


def _table(rows: list["TraceRow"], functions: "Symbols | None") -> Any:
    from rich.table import Table

    has_vcpu = rows[0].vcpu is not None
    several_vms = any(row.vm for row in rows)
    has_rip = any(row.paths for row in rows)
    has_asker = any(row.asker for row in rows)
    has_latency = any(row.latency for row in rows)
    table = Table(header_style="bold")
    table.add_column("index", justify="right", no_wrap=True)
    table.add_column("name", overflow="fold")
    table.add_column("op")
    if has_vcpu:
        table.add_column("vCPU", justify="right")
    table.add_column("count", justify="right")
    for name in ("outcome", "reason", "rule"):
        table.add_column(name, overflow="fold")
    for name in ("first value", "last value"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("from … to (s)", justify="right")
    if has_latency:
        table.add_column("p50, p90, p99 (µs)", justify="right")
    if has_asker:
        table.add_column("asked by", overflow="fold")
    elif has_rip:
        table.add_column("RIP", justify="right", overflow="fold")
    for row in rows:
        values = row.as_dict()
        who = f"{row.vm}.{row.vcpu}" if several_vms else str(row.vcpu)
        table.add_row(
            values["index"],
            values["name"],
            row.op,
            *([who] if has_vcpu else []),
            f"{row.count:,}",
            _outcomes(row),
            row.reason,
            cell(row.rule),
            values["first_value"] or "",
            values["last_value"] or "",
            _times(row),
            *([_latency(row)] if has_latency else []),
            *([cell(row.asker or _rips(row, functions))] if has_asker or has_rip else []),
        )
    return table


def _outcomes(row: "TraceRow") -> str:
    present = [(name, count) for name, count in row.outcomes.items() if count]
    words = [f"[red]{name}[/red]" if name == "fault" else name for name, _ in present]
    if len(present) == 1:
        return words[0]
    return ", ".join(f"{word} {count:,}" for word, (_, count) in zip(words, present, strict=True))


def _times(row: "TraceRow") -> str:
    times = [f"{moment.guest_ns / 1e9:.6f}" for moment in (row.first, row.last)]
    return " … ".join(dict.fromkeys(times))


def _latency(row: "TraceRow") -> str:
    latencies = () if row.latency is None else row.latency.values()
    return ", ".join(map(_microseconds, latencies if row.count > 1 else list(latencies)[:1]))


def _microseconds(ns: int) -> str:
    number = ns / 1e3
    return f"{number:.3g}" if number < 999.5 else f"{number:,.0f}"


def _rips(row: "TraceRow", functions: "Symbols | None") -> str:
    counts: dict[str, int] = {}
    for where, count in row.paths:
        name = f"{where.rip:#x}" if functions is None else functions.chain(where.rip)
        counts[name] = counts.get(name, 0) + count
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())
