# SPDX-License-Identifier: Apache-2.0
"""
Rendering
---------

Puts a report's page together: one file, which needs no other and asks no network for anything.

A trace may be anybody's. The template engine escapes what it says, the script only ever sets text,
and a content security policy lets the page's own script run, by its hash, and nothing else.
"""

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import jinja2
from markupsafe import Markup

from kvmsr.text import counted, duration, one_line
from kvmsr.trace.report.advice import notes, stubs
from kvmsr.trace.report.collect import Collected
from kvmsr.trace.report.content import content
from kvmsr.trace.report.latency import HEIGHT, WIDTH, chart, percentile
from kvmsr.trace.report.rows import MsrRow, described, rows
from kvmsr.trace.report.rules import listing

__all__ = ("render",)

_SCRIPTS: Final = ("base.js", "detail.js", "table.js", "lanes.js", "timeline.js", "page.js")
_MAX_TEXT: Final = 300
_MAX_HOST: Final = 12
_MAX_FAULTS: Final = 200
_MAX_CALLERS: Final = 3


def render(traces: Sequence[Collected]) -> str:
    """Return the page for one trace, or for two to compare."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("kvmsr.trace.report", "page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        clean=_clean, described=described, duration=duration, counted=counted, hex=_hex
    )
    style, script = _source(environment, ("page.css",)), _source(environment, _SCRIPTS)
    made = rows(traces)
    faults = _faults(made, traces)
    fired = [Counter[str]() for _ in traces]
    for counts, trace in zip(fired, traces, strict=True):
        for kind in trace:
            counts[kind.rule] += kind.count
    page = environment.get_template("page.html").render(
        traces=traces,
        names=["A", "B"] if len(traces) == 2 else [""],
        facts=_facts(traces),
        rows=made,
        totals=_totals(traces),
        faults=faults[:_MAX_FAULTS],
        more_faults=max(0, len(faults) - _MAX_FAULTS),
        chart=chart(traces),
        size=(WIDTH, HEIGHT),
        percentile=percentile,
        policy=listing([trace.head for trace in traces], list(fired)),
        notes=[notes(trace) for trace in traces],
        stubs=stubs(traces),
        content=content(traces, made),
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
    )
    return page.encode(errors="backslashreplace").decode()


def _source(environment: jinja2.Environment, names: Sequence[str]) -> str:
    assert environment.loader is not None
    return "\n".join(environment.loader.get_source(environment, name)[0] for name in names)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _clean(text: object) -> str:
    """Return *text* in one line of a reasonable length."""
    line = one_line(str(text)[: _MAX_TEXT + 1])
    return line if len(line) <= _MAX_TEXT else f"{line[: _MAX_TEXT - 1]}…"


def _hex(value: int | None) -> str:
    return "–" if value is None else f"{value:#x}"


def _when(ns: int) -> str:
    try:
        return datetime.fromtimestamp(ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return "not known"


def _facts(traces: Sequence[Collected]) -> list[tuple[str, list[str]]]:
    """Return what is known of the runs: a name, and a text for each trace."""

    def fact(trace: Collected) -> dict[str, str]:
        head = trace.head
        span = trace.last_ns - trace.first_ns
        made = {
            "Trace": trace.path.name,
            "Guest": head.image,
            "Command": f"kvmsr {head.command}",
            "Backend": head.backend,
            "Policy": head.policy,
            "Recorded": _when(head.began_ns) if head.began_ns else "",
            "Accesses span": duration(span) if trace.accesses else "",
            "Grade": str(head.grade),
            "kvmsr": head.kvmsr,
        }
        hosts = list(head.host.items())[:_MAX_HOST]
        return made | {f"Host: {name}": value for name, value in hosts}

    found = [fact(trace) for trace in traces]
    names = dict.fromkeys(name for each in found for name in each)
    facts = [(name, [each.get(name, "") for each in found]) for name in names]
    return [(name, texts) for name, texts in facts if any(texts)]


def _totals(traces: Sequence[Collected]) -> list[tuple[str, list[int]]]:
    kinds = [list(trace) for trace in traces]
    others = [trace.others for trace in traces]

    def sums(op: str) -> list[int]:
        return [
            sum(kind.count for kind in each if kind.op == op) + other[op]
            for each, other in zip(kinds, others, strict=True)
        ]

    return [
        ("MSRs", [len({k.index for k in each}) for each in kinds]),
        ("reads", sums("read")),
        ("writes", sums("write")),
        ("faults", [sum(k.count for k in each if k.outcome == "fault") for each in kinds]),
        (
            "left to defaults",
            [sum(k.count for k in each if k.by_default) for each in kinds],
        ),
    ]


def _faults(made: Sequence[MsrRow], traces: Sequence[Collected]) -> list[dict[str, Any]]:
    """Return the kinds of faults, the most frequent first."""
    found = []
    for row in made:
        for number, side in enumerate(row.sides):
            for kind in side.kinds:
                if kind.outcome == "fault":
                    callers = sorted(kind.callers.items(), key=lambda item: -item[1])[:_MAX_CALLERS]
                    others = kind.count - sum(count for _, count in callers)
                    found.append(
                        {
                            "row": row,
                            "kind": kind,
                            "trace": number,
                            "callers": [(traces[number].who(one), n) for one, n in callers],
                            "others": others,
                        }
                    )
    return sorted(found, key=lambda fault: -int(fault["kind"].count))
