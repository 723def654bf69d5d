# SPDX-License-Identifier: Apache-2.0
"""
--reload
--------

Reloads the policy of ``kvmsr run`` and ``kvmsr exec`` when its files change, and at SIGHUP.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click

from kvmsr.cli._output import echo
from kvmsr.session.reload import Reloader
from kvmsr.session.requests import Requests

__all__ = ("RELOAD", "expect_hangup", "reloading", "terminal_is_there")

RELOAD: Final = click.option(
    "--reload",
    is_flag=True,
    help="Reload the policy when one of its files changes, and at SIGHUP.",
)


def expect_hangup(wanted: bool) -> None:
    """From now on, let no SIGHUP end this process if it is *wanted* for reloading."""
    if wanted:
        # Not SIG_IGN, which the VMM would inherit.
        signal.signal(signal.SIGHUP, lambda number, frame: None)


@contextmanager
def reloading(requests: Requests, wanted: bool) -> Iterator[Callable[[], None] | None]:
    """Reload the policy if that is *wanted*, and return what a handler of SIGHUP has to call."""
    if not wanted:
        yield None
        return
    reloader = Reloader(requests, lambda line: echo(f"kvmsr: {line}", err=True))
    try:
        yield reloader.reload
    finally:
        reloader.close()


def terminal_is_there() -> bool:
    """Return whether this process has a controlling terminal that has not been hung up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
