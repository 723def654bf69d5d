# SPDX-License-Identifier: Apache-2.0
"""
Analysis of traces
------------------

What a trace file says: its summary, how two of them differ, and its form for other programs.
"""

from kvmsr.trace.analysis.paths import asker
from kvmsr.trace.analysis.rows import Moment, TraceRow
from kvmsr.trace.analysis.summary import TraceSummary, summarise

__all__ = ("Moment", "TraceRow", "TraceSummary", "asker", "summarise")
