# SPDX-License-Identifier: Apache-2.0
"""
Trace files
-----------

A trace file is an Apache Arrow IPC stream, which pandas, polars, DuckDB and others read without
kvmsr. Its columns are described in ``columns.py``, and the metadata of its schema, which says what
was recorded, in ``head.py``.

nanoarrow reads and writes it, which is a hundredth of the size of pyarrow. It and numpy take a
tenth of a second to import, so only what handles trace files imports this package.
"""

from kvmsr.trace.file.columns import EVENT, LATENCY, OPS, OUTCOMES, REASONS
from kvmsr.trace.file.head import Head, Unseen
from kvmsr.trace.file.reader import Trace
from kvmsr.trace.file.writer import TraceWriter
from kvmsr.trace.options import Grade

__all__ = (
    "EVENT",
    "LATENCY",
    "OPS",
    "OUTCOMES",
    "REASONS",
    "Grade",
    "Head",
    "Trace",
    "TraceWriter",
    "Unseen",
)
