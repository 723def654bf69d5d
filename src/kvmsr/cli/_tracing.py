# SPDX-License-Identifier: Apache-2.0
"""
Recording
---------

The options of the commands that record a run, or let Prometheus watch it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click

from kvmsr.cli._output import echo
from kvmsr.errors import UsageError
from kvmsr.session import Session
from kvmsr.trace import Grade, TraceOptions

__all__ = ("served", "trace_words", "traced")

_OPTIONS: Final = (
    click.option(
        "--trace",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Record every access in this file: see kvmsr trace.",
    ),
    click.option(
        "--trace-grade",
        type=click.Choice(list(map(str, Grade))),
        help="Record only counts; or the first access of each kind; or also those whose value"
        " changed; or all, which is the default.",
    ),
    click.option("--trace-rip", is_flag=True, help="Record the guest's RIP and CPL, too."),
    click.option(
        "--trace-callers",
        metavar="N",
        type=click.IntRange(1, 8),
        help="Record RIP, CPL and who called the guest's function: up to N return addresses.",
    ),
    click.option(
        "--lossless",
        is_flag=True,
        help="Let vCPUs wait if accesses come faster than they can be recorded.",
    ),
    click.option(
        "--metrics",
        metavar="HOST:PORT",
        help="Serve metrics for Prometheus on this address. Without HOST, it is the loopback.",
    ),
)


def traced(command: Callable[..., Any]) -> Callable[..., Any]:
    """
    Give *command* the options.

    It gets ``trace``, the :class:`~kvmsr.trace.TraceOptions`, or None if there is to be no trace,
    and ``metrics``. If options say how to record, but not where, that is a UsageError.
    """

    @wraps(command)
    def with_trace(
        *,
        trace: Path | None,
        trace_grade: str | None,
        trace_rip: bool,
        trace_callers: int | None,
        lossless: bool,
        **others: Any,
    ) -> Any:
        recorded = _trace_options(trace, trace_grade, trace_rip, trace_callers, lossless)
        return command(trace=recorded, **others)

    made: Callable[..., Any] = with_trace
    for option in reversed(_OPTIONS):
        made = option(made)
    return made


def _trace_options(
    path: Path | None, grade: str | None, rip: bool, callers: int | None, lossless: bool
) -> TraceOptions | None:
    if path is not None:
        return TraceOptions(path, Grade(grade or Grade.ALL), rip, callers or 0, lossless)
    about = {
        "--trace-grade": grade,
        "--trace-rip": rip,
        "--trace-callers": callers,
        "--lossless": lossless,
    }
    for option, given in about.items():
        if given:
            raise UsageError(f"{option} is about a trace, and there is none: add --trace FILE")
    return None


def trace_words(options: TraceOptions) -> list[str]:
    """Return the words that say on a command line how to record, but not where."""
    words = ["--trace-grade", str(options.grade)] if options.grade is not Grade.ALL else []
    words += ["--trace-callers", str(options.callers)] if options.callers else []
    words += ["--trace-rip"] * options.rip
    words += ["--lossless"] * options.lossless
    return words


@contextmanager
def served(session: Session, metrics: str | None) -> Iterator[None]:
    """
    Serve the metrics of a run while the context lasts, if *metrics* is an address.

    :raises HostError: if it cannot be served there.
    :raises UsageError: if it is no address.
    """
    if metrics is None:
        yield
        return
    from kvmsr.session.metrics import MetricsServer, parse_address  # not needed by most runs

    address = parse_address(metrics)
    with MetricsServer(session, address) as server:
        if not address.port:
            echo(f"kvmsr: metrics on http://{address.host}:{server.port}/metrics", err=True)
        yield
