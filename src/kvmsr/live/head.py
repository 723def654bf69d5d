# SPDX-License-Identifier: Apache-2.0
"""
The first lines
---------------

Which run it is, and how it goes as a whole.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from rich.text import Text

from kvmsr.live.columns import short
from kvmsr.text import counted, one_line

__all__ = ("head", "uptime")

_GAP: Final = "   "
_LEAST: Final = 12
"""The characters of a file's name that are always shown."""


def head(answer: Mapping[str, Any], rate: float, shown: str, trouble: str, width: int) -> Text:
    """
    Return the first two lines.

    :param answer: the last answer of the run.
    :param rate: accesses per second.
    :param shown: what is said about the lines that are shown.
    :param trouble: why there is no newer answer; "" if nothing is wrong.
    :param width: in characters. Names of files are cut on the left, so that the rest has room.
    """
    name = one_line(answer["name"] or str(answer["pid"]))
    after = Text(f"{_GAP}{answer['backend']}, {counted(answer['vcpus'], 'vCPU')}")
    if trouble:
        after.append(f"{_GAP}{one_line(trouble)}", "bold red")
    else:
        after.append(f"{_GAP}up {uptime(answer['started'])}")
    first = _around(f"{name} {answer['kind']} ", "bold", answer["command"], after, width)
    after = Text()
    changes = len(answer["changed"])
    if changes:
        after.append(f" + {counted(changes, 'change')}", "bold")
    after.append(f"{_GAP}{short(rate)}/s", "bold")
    after.append(f" of {counted(answer['accesses'], 'access', 'accesses')}")
    if answer["failures"]:
        after.append(f"{_GAP}{counted(answer['failures'], 'handler failure')}", "bold red")
    if answer["dropped_events"]:
        dropped = counted(answer["dropped_events"], "event")
        after.append(f"{_GAP}{dropped} dropped from the trace", "bold red")
    after.append(f"{_GAP}{shown}", "dim")
    return Text("\n").join(
        [first, _around("policy ", "dim", answer["policy"] or "none", after, width)]
    )


def _around(before: str, style: str, text: str, after: Text, width: int) -> Text:
    """Return a line with *text* in the middle, as much of its end as there is room for."""
    text, room = one_line(text), max(width - len(before) - len(after), _LEAST)
    line = Text().append(before, style)
    line.append(text if len(text) <= room else f"…{text[1 - room :]}")
    return line.append_text(after)


def uptime(started: str) -> str:
    """Return for how long a run has been running: ``5 s``, ``1:02:03``."""
    begun = datetime.fromisoformat(started)
    seconds = max(int((datetime.now(UTC) - begun).total_seconds()), 0)
    hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
    if hours:
        return f"{hours}:{minutes:02}:{seconds:02}"
    return f"{minutes}:{seconds:02}" if minutes else f"{seconds} s"
