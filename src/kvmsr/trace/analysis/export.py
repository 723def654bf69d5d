# SPDX-License-Identifier: Apache-2.0
"""
Traces for other programs
-------------------------

CSV, JSON lines, and the trace event format of Chrome, which Perfetto reads, too. All are written
batch by batch. Parquet is in ``parquet.py``.
"""

import csv
import io
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from kvmsr.symbols import Symbols
from kvmsr.text import counted
from kvmsr.trace.analysis.records import FIELDS, Record, records
from kvmsr.trace.file import Trace

__all__ = ("FORMATS", "csv_lines", "json_lines", "perfetto")


def csv_lines(trace: Trace, functions: Symbols | None = None) -> Iterator[bytes]:
    """Yield a trace as CSV, with a header. MSRs, values and addresses are in hexadecimal."""
    fields = FIELDS if functions is None else (*FIELDS, "symbol")
    yield f"{','.join(fields)}\r\n".encode()
    for events in trace.batches():
        text = io.StringIO()
        writer = csv.writer(text)
        for record in records(events, trace.rules):
            said = record.as_dict(functions)
            said["callers"] = " ".join(map(_caller, said["callers"]))
            writer.writerow(said.values())
        yield text.getvalue().encode()


def _caller(said: dict[str, Any]) -> str:
    return f"{said.get('symbol') or said['address']}{'?' * said['guess']}"


def json_lines(trace: Trace, functions: Symbols | None = None) -> Iterator[bytes]:
    """Yield a trace as JSON objects, one a line. MSRs, values and addresses are in hexadecimal."""
    encode = msgspec.json.Encoder().encode
    for events in trace.batches():
        lines = [encode(record.as_dict(functions)) for record in records(events, trace.rules)]
        yield b"".join(line + b"\n" for line in lines)


def perfetto(trace: Trace, functions: Symbols | None = None) -> Iterator[bytes]:
    """
    Yield a trace in Chrome's trace event format, in JSON.

    Each access is a slice on the track of its vCPU, as long as its latency. The process of a track
    is the VM. Accesses that were only counted are instants. Times begin with the run.
    """
    yield b'{"displayTimeUnit":"ns","traceEvents":['
    begin: int | None = None
    tracks: set[tuple[int, int]] = set()
    separator = b"\n"
    for events in trace.batches():
        if begin is None:
            first = int((events["time_ns"] - events["latency_ns"]).min())
            begin = trace.head.began_ns if 0 < trace.head.began_ns <= first else first
        parts: list[bytes] = []
        for record in records(events, trace.rules):
            if (record.vm, record.vcpu) not in tracks:
                tracks.add((record.vm, record.vcpu))
                parts += _names(record)
            taken_ns = record.time_ns - (record.latency_ns or 0)  # a row has the time of the answer
            parts.append(_slice(record, max(0, taken_ns - begin), functions))
        yield separator + b",\n".join(parts)
        separator = b",\n"
    about = {name: getattr(trace.head, name) for name in ("kvmsr", "command", "image", "backend")}
    yield b'\n],"otherData":' + msgspec.json.encode(about) + b"}\n"


def _ids(record: Record) -> dict[str, int]:
    """Return process and thread. Both begin at 1: in some viewers, 0 is the idle task."""
    return {"pid": record.vm + 1, "tid": (record.vm << 16 | record.vcpu) + 1}


def _names(record: Record) -> list[bytes]:
    process = f"VM {record.vm} (process {record.pid})"
    return [
        msgspec.json.encode({"ph": "M", "name": what, **_ids(record), "args": {"name": name}})
        for what, name in (("process_name", process), ("thread_name", f"vCPU {record.vcpu}"))
    ]


def _slice(record: Record, since_ns: int, functions: Symbols | None) -> bytes:
    what = f"{record.op} {record.name or f'{record.index:#x}'}"
    event: dict[str, object] = {"ph": "X", "name": what, "cat": f"msr,{record.outcome}"}
    event |= {**_ids(record), "ts": _microseconds(since_ns)}
    if record.latency_ns is None:
        accesses = counted(record.count, "access", "accesses")
        event |= {"ph": "i", "s": "t", "name": f"{what}: {accesses}, only counted"}
    else:
        event["dur"] = _microseconds(record.latency_ns)
    said = record.as_dict()
    args = {name: said[name] for name in _SAID if said[name] is not None}
    if functions is not None or record.callers:
        args["where"] = record.where(functions)
    event["args"] = args
    return msgspec.json.encode(event)


_SAID: Final = (
    "index", "name", "value", "outcome", "reason", "rule", "guest_ns", "count", "rip", "cpl",
)  # fmt: skip


def _microseconds(nanoseconds: int) -> msgspec.Raw:
    """Return nanoseconds as a JSON number of microseconds, exactly."""
    return msgspec.Raw(f"{nanoseconds // 1000}.{nanoseconds % 1000:03}".encode())


FORMATS: Final[dict[str, Callable[[Trace, Symbols | None], Iterator[bytes]]]] = {
    "csv": csv_lines,
    "jsonl": json_lines,
    "perfetto": perfetto,
}
"""The formats that are text."""
