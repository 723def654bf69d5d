# SPDX-License-Identifier: Apache-2.0
"""
The summary of the native core
------------------------------

Read the rows that C has counted.
"""

from typing import Any

from kvmsr.native import ffi, lib
from kvmsr.native.block import Block
from kvmsr.native.table import Names
from kvmsr.native.words import OPS, REASONS, by_number
from kvmsr.policy import Reason
from kvmsr.trace.latencies import Latencies
from kvmsr.trace.summary import MAX_ROWS, Row, Summary

__all__ = ("native_latencies", "native_summary")

_OPS, _REASONS = by_number(OPS), by_number(REASONS)


def native_summary(block: Block, names: Names, max_rows: int = MAX_ROWS) -> Summary:
    """Return the summary of all accesses of the vCPUs of *block*."""
    total = Summary(max_rows)
    raw = block.raw
    for vcpu in block.vcpus():
        if not vcpu.n_rows:
            continue
        for row in vcpu.rows:
            # Under kvmsr exec the VMM can write here, and may write nonsense.
            if row.used and row.op < len(_OPS) and row.reason < len(_REASONS):
                key = (row.index, _OPS[row.op], _REASONS[row.reason], names.name(row.name))
                total.add(_row(row, Row(*key)))
        for op, others in zip(_OPS, vcpu.others, strict=True):
            total.others[op].add(_row(others, Row(0, op, Reason.UNKNOWN, "")))
    if raw.others.n_pages:
        _add_others(total, raw.others)
    return total


def native_latencies(block: Block) -> Latencies:
    """Return how long the accesses of the vCPUs of *block* took."""
    total = Latencies()
    for vcpu in block.vcpus():
        for number, count in enumerate(vcpu.latencies):
            total.counts[number] += count
        total.sum_ns += vcpu.latency_ns
    return total


def _row(raw: Any, row: Row) -> Row:
    row.values, row.dones, row.faults, row.stops = raw.values, raw.dones, raw.faults, raw.stops
    if raw.has & 1:
        row.first_value, row.last_value = raw.first_value, raw.last_value
    if raw.has & 2:
        row.first_rip = raw.first_rip
    return row


def _add_others(total: Summary, raw: Any) -> None:
    if raw.n_pages > lib.KVMSR_PAGES:
        total.other_msrs.exact = False
    for number, page in enumerate(raw.page_of):
        if page:
            bits = ffi.buffer(lib.kvmsr_page(ffi.addressof(raw), page - 1), 4096)
            total.other_msrs.add_page(number, bytes(bits))
