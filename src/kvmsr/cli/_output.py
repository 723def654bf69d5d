# SPDX-License-Identifier: Apache-2.0
"""
Output
------

What commands print. Names and messages from policies, handlers and guests go through here, so that
each of them stays within its line or table cell.
"""

import json

import click

from kvmsr.text import one_line

__all__ = ("cell", "echo", "print_json")


def echo(line: str, *, err: bool = False) -> None:
    """Print *line*, and one line only."""
    click.echo(one_line(line), err=err)


def cell(text: str) -> str:
    """Return *text* for a table or a line that rich prints."""
    from rich.markup import escape  # not needed by most commands

    return escape(one_line(text))


def print_json(what: object) -> None:
    """Print *what* as JSON."""
    click.echo(json.dumps(what, indent=2))
