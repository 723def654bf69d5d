# SPDX-License-Identifier: Apache-2.0
"""
Parquet
-------

Needs pyarrow, which is 50 times the size of nanoarrow, and therefore an extra.
"""

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from kvmsr.errors import HostError
from kvmsr.trace.file import Trace
from kvmsr.trace.file.columns import WORDS, columns, is_nullable, values
from kvmsr.trace.file.head import KEY

__all__ = ("write_parquet",)


def write_parquet(trace: Trace, file: BinaryIO) -> None:
    """
    Write a trace as a Parquet file, with the columns and the metadata of the trace.

    :raises HostError: if pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter
    except ImportError:
        raise HostError(
            "Parquet needs pyarrow, which is not installed: pip install 'kvmsr[parquet]'"
        ) from None
    given = columns(rip=True, callers=trace.callers)
    schema = pa.schema(
        [pa.field(name, _type(pa, name, kind), is_nullable(name)) for name, kind in given],
        metadata={KEY: trace.head.encoded()},
    )
    with ParquetWriter(file, schema) as writer:
        for events in trace.batches():
            arrays = [
                _column(pa, events, name, field.type, trace.rules)
                for (name, _), field in zip(given, schema, strict=True)
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))


def _type(pa: Any, name: str, kind: str) -> Any:
    if kind == "time":
        return pa.timestamp("ns", "UTC")
    if kind == "words":
        return pa.dictionary(pa.int32(), pa.string())
    return pa.from_numpy_dtype(np.dtype(kind))


def _column(
    pa: Any, events: np.ndarray[Any, Any], name: str, kind: Any, rules: Sequence[str]
) -> Any:
    if name == "time":
        return pa.array(events["time_ns"].view(np.int64), kind)
    if name in WORDS or name == "rule":
        words = pa.array(list(WORDS.get(name, rules)), pa.string())
        return pa.DictionaryArray.from_arrays(events[name].astype(np.int32), words)
    numbers, has = values(events, name)
    return pa.array(numbers, kind, mask=None if has is None else ~has)
