# SPDX-License-Identifier: Apache-2.0
"""
Trace
-----

The record of a run: its :class:`Summary`, and the trace of all accesses, in a file (``file``).
"""

from kvmsr.trace.latencies import Latencies
from kvmsr.trace.options import Grade, TraceOptions
from kvmsr.trace.recent import MAX_RECENT, Recent, RecentAccesses
from kvmsr.trace.summary import MAX_ROWS, IndexCount, Row, Summary

__all__ = (
    "MAX_RECENT",
    "MAX_ROWS",
    "Grade",
    "IndexCount",
    "Latencies",
    "Recent",
    "RecentAccesses",
    "Row",
    "Summary",
    "TraceOptions",
)
