# SPDX-License-Identifier: Apache-2.0
"""
The comparison as a whole
-------------------------

Headers from the folders that environment variables name, compared, and a table of how they agree.
"""

import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.msr.agreement.compare import Agreement, Difference, compare
from tests.msr.agreement.headers import read_edk2, read_ia32_doc
from tests.msr.agreement.held import read_held

__all__ = ("SOURCES", "Report", "report", "table")

SOURCES = {"KVMSR_EDK2": read_edk2, "KVMSR_IA32_DOC": read_ia32_doc}
"""Readers by the environment variable that names the folder with the source tree."""

_COLUMNS = ("identical", "granularity", "different", "unknown")


class Report(NamedTuple):
    """What came of it: all headers; differences without a reason; rows that explain none."""

    headers: list[Agreement]
    open: list[Difference]
    unused: list[str]

    def agreed(self) -> float:
        """Return the share of fields that are the same, or the same but for granularity."""
        counts = sum((one.counts.get("fields", Counter()) for one in self.headers), Counter())
        return (counts["identical"] + counts["granularity"]) / counts.total()


def report(variable: str) -> Report:
    """Compare the headers in the folder that the environment variable *variable* names."""
    headers = [compare(header) for header in SOURCES[variable](Path(os.environ[variable]))]
    differences = [difference for one in headers for difference in one.differences]
    held = read_held()
    without = [one for one in differences if not any(row.covers(one) for row in held)]
    unused = [
        f"{row.header} {row.msr} {row.aspect}"
        for row in held
        if any(row.about(one.header) for one in headers)
        and not any(row.covers(one) for one in differences)
    ]
    return Report(headers, without, unused)


def table(done: Report) -> str:
    """Return the counts as text: a line for each header and aspect, and their sums."""
    lines = [f"{'':18} {'':7}" + "".join(f"{name:>12}" for name in _COLUMNS)]
    sums: dict[str, Counter[str]] = {}
    for one in done.headers:
        for aspect, found in sorted(one.counts.items()):
            lines.append(_line(one.header, aspect, found))
            sums.setdefault(aspect, Counter()).update(found)
    lines += [_line("all", aspect, found) for aspect, found in sorted(sums.items())]
    return "\n".join([*lines, f"fields that agree: {done.agreed():.1%}"])


def _line(header: str, aspect: str, found: Counter[str]) -> str:
    return f"{header:18} {aspect:7}" + "".join(f"{found[name]:12}" for name in _COLUMNS)
