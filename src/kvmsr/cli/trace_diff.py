# SPDX-License-Identifier: Apache-2.0
"""
kvmsr trace diff
----------------

Compares two traces.
"""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kvmsr.cli._names import NAMES_OF_GUEST, speak_of_recorded
from kvmsr.cli._output import cell, echo, print_json
from kvmsr.cli._traces import JSON, PATH, about, report_cut
from kvmsr.msr import catalog
from kvmsr.text import counted

if TYPE_CHECKING:
    from kvmsr.trace.analysis.diff import (
        Answer,
        Differences,
        FirstDifference,
        MsrDifference,
        OrderDifference,
    )

__all__ = ("diff",)

_WIDE = 200
_MOST_ORDER = 8
"""vCPUs of which the order is shown."""

_EXAMPLES = """\b
Examples:
  kvmsr trace diff debian-6.1.arrows debian-6.12.arrows
  kvmsr trace diff --json kvm.arrows soft.arrows | jq '.msrs[].index'
"""


@click.command(epilog=_EXAMPLES)
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@click.option(
    "--exact", is_flag=True, help="Compare values that rise in both, too, as those of clocks do."
)
@NAMES_OF_GUEST
@JSON
def diff(a: Path, b: Path, exact: bool, as_json: bool) -> int:
    """
    Compare two traces.

    This shows the MSRs that only one of them has, numbers and outcomes that differ, for each MSR
    the first value that differs, and for each vCPU the first access where the order differs. Times,
    processes, reasons and rules are not compared. The exit status is 0 if the traces are equal, and
    1 if they differ.
    """
    from kvmsr.trace.analysis.counting import CountingTrace
    from kvmsr.trace.analysis.diff import diff as differences_of
    from kvmsr.trace.analysis.recorded import Recorded

    sides = []
    for name, path in (("A", a), ("B", b)):
        with CountingTrace(path) as trace:
            speak_of_recorded(trace.head)
            sides.append(Recorded(trace))
            if not as_json:
                echo(f"{name}: {about(path, trace.head)}")
            report_cut(path, trace.cut)
    found = differences_of(*sides, exact=exact)
    if as_json:
        print_json({"schema": 1, "a": str(a), "b": str(b), **_as_dict(found)})
    else:
        _print(found)
    return 1 if found else 0


def _as_dict(found: "Differences") -> dict[str, Any]:
    return {
        "differ": bool(found),
        "compared": found.compared,
        "msrs": [
            {**_msr(one.index, one.op), "a": one.a, "b": one.b, "moved": one.moved,
             "first": _first(one.first)}
            for one in found.msrs
        ],
        "order": [
            {**asdict(one), "a": one.a and _msr(one.a[1], one.a[0]),
             "b": one.b and _msr(one.b[1], one.b[0])}
            for one in found.order
        ],
        "rising": [_msr(index, op) for index, op in found.rising],
        "notes": found.notes,
    }  # fmt: skip


def _msr(index: int, op: str) -> dict[str, str]:
    return {"index": f"{index:#x}", "name": catalog().name(index), "op": op}


def _first(first: "FirstDifference | None") -> dict[str, Any] | None:
    if first is None:
        return None
    return {**asdict(first), "a": _answer(first.a), "b": _answer(first.b)}


def _answer(answer: "Answer") -> dict[str, str | None]:
    return {
        "outcome": answer.outcome,
        "value": None if answer.value is None else f"{answer.value:#x}",
    }


def _print(found: "Differences") -> None:
    if found.msrs:
        from rich.console import Console

        Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE).print(
            _table(found.msrs)
        )
    for one in found.order[:_MOST_ORDER]:
        echo(_order(one))
    if len(found.order) > _MOST_ORDER:
        echo(f"… and {counted(len(found.order) - _MOST_ORDER, 'more vCPU')} in another order")
    if found.rising:
        names = ", ".join(f"{op} of {_name(index)}" for index, op in found.rising[:_MOST_ORDER])
        more = ", …" if len(found.rising) > _MOST_ORDER else ""
        echo(f"not compared, as they rise in both (--exact does): {names}{more}")
    for note in found.notes:
        echo(f"note: {note}")
    pairs = f"{found.compared:,} pairs of MSR and direction"
    if found.msrs:
        echo(f"{len(found.msrs):,} of {pairs} differ")
    else:
        echo(f"{pairs}: equal{', but in another order' if found.order else ''}")


def _table(msrs: list["MsrDifference"]) -> Any:
    from rich.table import Table

    table = Table("index", "name", "op", "A", "B", "first difference", header_style="bold")
    table.columns[0].justify = "right"
    for one in msrs:
        table.add_row(
            f"{one.index:#x}", catalog().name(one.index), one.op, _counts(one.a), _counts(one.b),
            cell(_where(one)),
        )  # fmt: skip
    return table


def _counts(outcomes: dict[str, int]) -> str:
    if not outcomes:
        return "[yellow]none[/yellow]"
    return ", ".join(
        f"[red]{name}[/red] {count:,}" if name == "fault" else f"{name} {count:,}"
        for name, count in outcomes.items()
    )


def _where(one: "MsrDifference") -> str:
    if one.first is None:
        return "the numbers of its vCPUs" if one.moved else ""
    first = one.first
    return (
        f"{_vcpu(first.vm, first.vcpu)}, access {first.position:,}:"
        f" {_said(first.a)} in A, {_said(first.b)} in B"
    )


def _said(answer: "Answer") -> str:
    if answer.value is None:
        return answer.outcome
    value = f"{answer.value:#x}"
    return value if answer.outcome in ("value", "done") else f"{answer.outcome} at {value}"


def _order(one: "OrderDifference") -> str:
    sides = [
        "nothing more" if side is None else f"{side[0]} of {_name(side[1])}"
        for side in (one.a, one.b)
    ]
    return (
        f"order: {_vcpu(one.vm, one.vcpu)}, access {one.position:,}: {sides[0]} in A,"
        f" {sides[1]} in B"
    )


def _vcpu(vm: int, vcpu: int) -> str:
    return f"vCPU {vcpu} of VM {vm}" if vm else f"vCPU {vcpu}"


def _name(index: int) -> str:
    return f"{index:#x} {catalog().name(index)}".strip()
