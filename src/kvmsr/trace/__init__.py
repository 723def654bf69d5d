# SPDX-License-Identifier: Apache-2.0
"""
Trace
-----

What is kept of a run: for now its :class:`Summary`.
"""

from kvmsr.trace.summary import MAX_ROWS, IndexCount, Row, Summary

__all__ = ("MAX_ROWS", "IndexCount", "Row", "Summary")
