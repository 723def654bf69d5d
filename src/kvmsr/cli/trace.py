# SPDX-License-Identifier: Apache-2.0
"""
kvmsr trace
-----------

Reads trace files, which ``kvmsr run`` and ``kvmsr exec`` write.
"""

import click

from kvmsr.cli.trace_diff import diff
from kvmsr.cli.trace_export import export
from kvmsr.cli.trace_policy import policy_
from kvmsr.cli.trace_replay import replay
from kvmsr.cli.trace_show import show
from kvmsr.cli.trace_summary import summary

__all__ = ("command",)


@click.group(epilog="Example: kvmsr trace summary boot.arrows")
def command() -> None:
    """Summarise, show, compare, convert and replay traces, and learn policies."""


for one in (summary, show, diff, export, replay, policy_):
    command.add_command(one)
