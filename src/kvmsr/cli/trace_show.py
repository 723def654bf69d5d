# SPDX-License-Identifier: Apache-2.0
"""
kvmsr trace show
----------------

Shows the accesses of a trace one by one.
"""

import json
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import click

from kvmsr.cli._names import NAMES_OF_GUEST, speak_of_recorded
from kvmsr.cli._traces import (
    SYMBOLS,
    TRACE,
    Duration,
    MsrSelector,
    read_symbols,
    report_cut,
    report_dropped,
)
from kvmsr.msr import catalog, decode
from kvmsr.text import counted, duration, one_line

if TYPE_CHECKING:
    from kvmsr.msr import Decoded
    from kvmsr.symbols import Symbols
    from kvmsr.trace.analysis.records import Record

__all__ = ("show",)

_OPS = ["read", "write"]
_OUTCOMES = ["value", "done", "fault", "stop"]
_BAD = ("fault", "stop")

_EXAMPLES = """\b
Examples:
  kvmsr trace show boot.arrows
  kvmsr trace show boot.arrows --msr 'IA32_MC*' --msr 0x10-0x20 --outcome fault
  kvmsr trace show boot.arrows --vcpu 1 --since 10ms --decode
  kvmsr trace show boot.arrows --symbols vmlinuz
  kvmsr trace show boot.arrows --follow
"""


@click.command(epilog=_EXAMPLES)
@TRACE
@click.option(
    "--msr",
    "msrs",
    type=MsrSelector(),
    multiple=True,
    help="Only these MSRs: a number, a range, a name, or a pattern of names. May be repeated.",
)
@click.option(
    "--vcpu",
    "vcpus",
    type=click.IntRange(0),
    multiple=True,
    help="Only this vCPU. May be repeated.",
)
@click.option("--op", type=click.Choice(_OPS), help="Only reads, or only writes.")
@click.option(
    "--outcome",
    "outcomes",
    type=click.Choice(_OUTCOMES),
    multiple=True,
    help="Only accesses with this outcome. May be repeated.",
)
@click.option(
    "--since",
    type=Duration(),
    default="0",
    help="Only accesses from this time of the guest's clock on, in seconds or with a unit: 10ms.",
)
@SYMBOLS
@NAMES_OF_GUEST
@click.option("--decode", "decoding", is_flag=True, help="Show the fields of each value.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")
@click.option("--follow", is_flag=True, help="Wait for more while the run goes on.")
def show(
    file: Path,
    msrs: tuple[tuple[tuple[int, int], ...], ...],
    vcpus: tuple[int, ...],
    op: str | None,
    outcomes: tuple[str, ...],
    since: int,
    symbols: Path | None,
    decoding: bool,
    as_json: bool,
    follow: bool,
) -> None:
    """
    Show the accesses of a trace one by one.

    Each line has the guest's clock in seconds, the vCPU, the direction, the MSR with its value, the
    outcome, the time that it took in user space, what decided it, and where the guest was, with
    its callers, if the trace has that; a question mark is at those that are guesses. Options select
    accesses; all of them must hold.
    """
    from kvmsr.cli._follow import Following
    from kvmsr.policy.selector import merge
    from kvmsr.trace.analysis.counting import CountingTrace
    from kvmsr.trace.analysis.records import Wanted, records

    wanted = Wanted(
        msrs=merge(chain.from_iterable(msrs)),
        vcpus=vcpus,
        ops=[op] if op else [],
        outcomes=outcomes,
        since_ns=since,
    )
    functions = read_symbols(symbols, file)
    decoder = _Decoder() if decoding else None
    source = cast(BinaryIO, Following(file)) if follow else None
    with CountingTrace(file, source) as trace:
        speak_of_recorded(trace.head)
        for events in trace.batches():
            chosen = records(wanted.of(events), trace.rules)
            say = _json if as_json else _line
            lines = [say(one, decoder, functions) for one in chosen]
            if lines:
                click.echo("\n".join(lines))
        report_cut(file, trace.cut)
        report_dropped(file, trace.dropped)


class _Decoder:
    """Decodes values, with the units and limits that a VM's earlier accesses have shown."""

    def __init__(self) -> None:
        self._seen: dict[int, dict[str, int]] = {}

    def decode(self, record: "Record") -> "Decoded | None":
        """Return the fields of a record's value; None if they are not known."""
        entry = catalog().get(record.index)
        if entry is None or record.value is None or not entry.fields:
            return None
        seen = self._seen.setdefault(record.vm, {})
        if record.outcome not in _BAD:
            seen[entry.name] = record.value
        return decode(entry, record.value, seen)


def _json(record: "Record", decoder: "_Decoder | None", functions: "Symbols | None") -> str:
    said = record.as_dict(functions)
    if decoder:
        decoded = decoder.decode(record)
        said["fields"] = [one.as_dict() for one in decoded] if decoded else []
        said["rest"] = {what: f"{bits:#x}" for what, bits in decoded.rest} if decoded else {}
    return json.dumps(said)


def _line(record: "Record", decoder: "_Decoder | None", functions: "Symbols | None") -> str:
    outcome = record.outcome
    if outcome in _BAD:
        outcome = click.style(outcome, fg="red")
    value = "" if record.value is None else f" = {record.value:#x}"
    took = (
        f"{counted(record.count, 'access', 'accesses')}, only counted"
        if record.latency_ns is None
        else duration(record.latency_ns)
    )
    who = f"{record.vm}.{record.vcpu}" if record.vm else f"{record.vcpu}"
    name = f" {record.name}" if record.name else ""
    where = f" at {record.where(functions)}" if record.rip is not None else ""
    line = (
        f"{record.guest_ns / 1e9:14.9f} vCPU {who} {record.op:5} {record.index:#x}{name}{value}:"
        f" {outcome} ({record.reason}, {one_line(record.rule)}, {took}){where}"
    )
    decoded = decoder.decode(record) if decoder else None
    if decoded and decoded.brief:
        line += f"\n{'':15}{decoded.brief}"
    return line
