# SPDX-License-Identifier: Apache-2.0
"""
One MSR
-------

What is said about the MSR that is selected. The texts come from guests and policies, so they are
made safe, and never read as markup.
"""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from kvmsr.live.board import Line
from kvmsr.msr import Msr, catalog, decode
from kvmsr.text import one_line

__all__ = ("about", "fields", "heading", "recent")

_BITS: Final = 64
_MOST_BITS: Final = 8
_TITLES: Final = ("time", "vCPU", "op", "value", "outcome", "rule")
_RIGHT: Final = (1, 3)
_FAULT: Final = "fault"


def heading(line: Line) -> Text:
    """Return the name of an MSR, and what it is."""
    entry = catalog().get(line.index)
    text = Text(f"{line.index:#x}", "bold")
    if entry is None:
        return text.append("  not in the catalog", "dim")
    text.append(f" {entry.name}")
    return text.append(f"  {entry.about}", "dim")


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


def fields(line: Line) -> Table | Text:
    """Return the fields of the value that an MSR had last, the highest first."""
    entry, value = catalog().get(line.index), line.last_value
    if value is None:
        return Text("no value yet", "dim")
    if entry is None or not entry.fields:
        return Text(_bits(value), "dim")
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("bits", justify="right", no_wrap=True)
    table.add_column("field", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("meaning")
    for cells, is_set in _fields(entry, value):
        table.add_row(*map(Text, cells), style="" if is_set else "dim")
    return table


def _fields(entry: Msr, value: int) -> Iterator[tuple[tuple[str, ...], bool]]:
    decoded = decode(entry, value)
    for field, number, meaning in reversed(decoded.fields):
        shown = f"{number:#x}" if number > 9 else f"{number}"
        said = " = ".join(part for part in (field.about, meaning) if part)
        yield (field.span, field.name, shown, said), bool(number)
    for bits, what in ((decoded.reserved, "reserved"), (decoded.unknown, "not in the catalog")):
        if bits:
            yield ("", "…", f"{bits:#x}", f"set, but {what}"), True


def _bits(value: int) -> str:
    """Return which bits of a value are set."""
    found = [str(bit) for bit in range(_BITS) if value >> bit & 1]
    if not found:
        return f"{value:#x}: no bit is set"
    more = f" and {len(found) - _MOST_BITS} more" if len(found) > _MOST_BITS else ""
    return f"{value:#x}: bits {', '.join(found[:_MOST_BITS])}{more} are set"


def recent(msr: Mapping[str, Any] | None, *, several_vms: bool) -> Text:
    """
    Return the last accesses, the latest first.

    :param msr: what the run said about the MSR; None if it has not said anything yet.
    :param several_vms: whether to say which VM it was.
    """
    if msr is None or not msr["recent"]:
        return Text("no access since it was selected", "dim")
    rows = [_TITLES, *(_cells(one, several_vms) for one in reversed(msr["recent"]))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = Text(no_wrap=True, overflow="ellipsis")
    for number, row in enumerate(rows):
        for place, (cell, width) in enumerate(zip(row, widths, strict=True)):
            fitted = cell.rjust(width) if place in _RIGHT else cell.ljust(width)
            style = "dim" if not number else "red" if cell == _FAULT else ""
            text.append(f"{fitted} ", style)
        text.append("\n")
    return text


def _cells(one: Mapping[str, Any], several_vms: bool) -> tuple[str, ...]:
    vcpu = f"{one['vm']}.{one['vcpu']}" if several_vms else str(one["vcpu"])
    when = datetime.fromtimestamp(one["time"]).strftime("%H:%M:%S.%f")[:-3]
    return when, vcpu, one["op"], one["value"] or "", one["outcome"], one_line(one["rule"])
