# SPDX-License-Identifier: Apache-2.0
"""
Trace
-----

The record of a run. For now, that is its :class:`Summary`.
"""

from kvmsr.trace.summary import MAX_ROWS, IndexCount, Row, Summary

__all__ = ("MAX_ROWS", "IndexCount", "Row", "Summary")
