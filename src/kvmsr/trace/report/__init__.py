# SPDX-License-Identifier: Apache-2.0
"""
Reports
-------

Turns a trace, or two to compare, into one HTML page that works offline.
"""

from kvmsr.trace.report.write import write_report

__all__ = ("write_report",)
