# SPDX-License-Identifier: Apache-2.0
"""
One MSR
-------

What is said about the MSR that is selected. The texts come from guests and policies, so they are
made safe, and never read as markup.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from rich.text import Text

from kvmsr.live.board import Line
from kvmsr.msr import Msr, catalog, decode
from kvmsr.text import one_line

__all__ = ("about", "fields", "heading", "recent")

_BITS: Final = 64
_MOST_BITS: Final = 8
_TITLES: Final = ("time", "vCPU", "op", "value", "outcome", "rule")
_RIGHT: Final = (1, 3)
_BAD: Final = ("fault", "stop")
"""The outcomes that are said; a read that returned a value, and a write that was done, are not."""


def heading(line: Line) -> Text:
    """Return the name of an MSR, and what it is."""
    entry = catalog().get(line.index)
    if entry is None:
        return Text().append(f"{line.index:#x}", "bold").append("  not in the catalog", "dim")
    text = Text().append(f"{line.index:#x} {entry.name}", "bold")
    return text.append(f"  {entry.about.partition('. ')[0].rstrip('.')}", "dim")


def about(line: Line, msr: Mapping[str, Any] | None) -> Text:
    """
    Return what happens to accesses to an MSR, its last values, and who accessed it first.

    :param msr: what the run said about it; None if it has not said anything yet.
    """
    text = Text()
    for op, past in (("read", "read"), ("write", "written")):
        text.append(f"{op}s: ", "bold").append(_says(msr, op))
        if op in line.values:
            text.append(f", last {past} {line.values[op]:#x}", "dim")
        text.append("\n")
    if line.first_rip:
        text.append("first at RIP ", "dim").append(one_line(line.first_rip))
    return text.append(f"  last reason {line.reason}", "dim")


def _says(msr: Mapping[str, Any] | None, op: str) -> Text:
    if msr is None:
        return Text("…")
    text = Text()
    for number, rule in enumerate(msr[op]):
        text.append(" else " if number else "").append(one_line(rule["action"]))
        text.append(" if its condition holds" if rule["when"] else "")
        text.append(f" ({one_line(rule['rule'])})", "dim")
    if not msr[op] or msr[op][-1]["when"]:
        text.append(" else " if msr[op] else "").append("kernel, then the defaults")
    return text


def fields(line: Line, *, briefly: bool) -> Text:
    """
    Return the fields of the value that an MSR had last, the highest first.

    :param briefly: whether to leave out what each field is about.
    """
    entry, value = catalog().get(line.index), line.last_value
    if value is None:
        return Text("no value yet", "dim")
    if entry is None or not entry.fields:
        return Text(_bits(value), "dim")
    rows = [*_fields(entry, value, briefly)]
    return _grid([("bits", "field", "value", ""), *rows], right=(0, 2), is_dim=_is_zero)


def _fields(entry: Msr, value: int, briefly: bool) -> Iterator[tuple[str, ...]]:
    decoded = decode(entry, value)
    for one in reversed(decoded.fields):
        said = one.words if briefly else one.said
        yield one.field.span, one.field.name, one.shown, said
    for what, bits in decoded.rest:
        yield "", what, f"{bits:#x}", ""


def _is_zero(row: tuple[str, ...]) -> bool:
    return row[2] in ("0", "0x0")


def _grid(
    rows: Sequence[tuple[str, ...]], right: Sequence[int], is_dim: Callable[[tuple[str, ...]], bool]
) -> Text:
    """
    Return rows of cells, titles first, in columns; those without any content are left out.

    :param right: the columns that are aligned on the right.
    """
    columns = list(zip(*rows[1:], strict=True))
    shown = [place for place, column in enumerate(columns) if any(column)]
    widths = {place: max(len(row[place]) for row in rows) for place in shown}
    text = Text()
    for number, row in enumerate(rows):
        quiet = "dim" if not number or is_dim(row) else ""
        for place in shown:
            cell, width = row[place], widths[place]
            if place in right:
                cell = cell.rjust(width)
            text.append(cell, "red" if cell in _BAD else quiet)
            if place != shown[-1]:
                text.append(" " * (width - len(cell) + 1))
        text.append("\n")
    return text


def _bits(value: int) -> str:
    """Return which bits of a value are set."""
    found = [str(bit) for bit in range(_BITS) if value >> bit & 1]
    if not found:
        return f"{value:#x}: no bit is set"
    more = f" and {len(found) - _MOST_BITS} more" if len(found) > _MOST_BITS else ""
    return f"{value:#x}: bits {', '.join(found[:_MOST_BITS])}{more} are set"


def recent(msr: Mapping[str, Any] | None, *, vms: int, vcpus: int) -> Text:
    """
    Return the last accesses, the latest first.

    :param msr: what the run said about the MSR; None if it has not said anything yet.
    :param vms: the number of VMs. Which one it was is said if there are several.
    :param vcpus: the number of vCPUs, likewise.
    """
    if msr is None or not msr["recent"]:
        return Text("no access since it was selected", "dim")
    rows = [_cells(one, vms, vcpus) for one in reversed(msr["recent"])]
    return _grid([_TITLES, *rows], right=_RIGHT, is_dim=lambda row: False)


def _cells(one: Mapping[str, Any], vms: int, vcpus: int) -> tuple[str, ...]:
    vcpu = f"{one['vm']}.{one['vcpu']}" if vms > 1 else str(one["vcpu"]) if vcpus > 1 else ""
    when = datetime.fromtimestamp(one["time"]).strftime("%H:%M:%S.%f")[:-3]
    outcome = one["outcome"] if one["outcome"] in _BAD else ""
    return when, vcpu, one["op"], one["value"] or "", outcome, one_line(one["rule"])
