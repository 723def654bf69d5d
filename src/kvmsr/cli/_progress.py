# SPDX-License-Identifier: Apache-2.0
"""
Progress
--------

A sign of life while a guest runs without its console on the terminal.
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from kvmsr.machine import Machine
from kvmsr.text import counted

__all__ = ("progress",)

_PATIENCE = 2.0
_PERIOD = 0.5


@contextmanager
def progress(machine: Machine) -> Iterator[None]:
    """After two seconds, show on standard error that *machine* is running, if it is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_show, args=(machine, done), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _show(machine: Machine, done: threading.Event) -> None:
    begun = time.monotonic()
    if done.wait(_PATIENCE):
        return
    while True:
        seconds = time.monotonic() - begun
        text = f"running, {seconds:.0f} s, {counted(machine.exits, 'exit')}; Ctrl-C ends it"
        sys.stderr.write(f"\r{text}\x1b[K")
        sys.stderr.flush()
        if done.wait(_PERIOD):
            break
    sys.stderr.write("\r\x1b[K")
    sys.stderr.flush()
