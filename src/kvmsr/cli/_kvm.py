# SPDX-License-Identifier: Apache-2.0
"""
What KVM does, in words
-----------------------

Says how KVM handles accesses to an MSR, for people and for programs.
"""

from typing import Any, Final

from kvmsr.msr import Handling, Msr, handling

__all__ = ("about_kvm", "kvm_as_dict")

_HOW: Final = {
    "emulated": "emulated", "passed": "passed through", "ignored": "ignored", "refused": "refused",
}  # fmt: skip


def about_kvm(index: int, entry: Msr | None) -> list[str]:
    """Return what KVM does with accesses to MSR *index*: a line for each way, and what is left."""
    rows = handling(index)
    known = [row for row in rows if row.by]
    lines = [_line(row) for row in known]
    unknown = [
        op for op in ("reads", "writes") if not any(getattr(row, op) for row in known)
    ]  # fmt: skip
    if not rows:
        lines.append("No KVM handles it: accesses reach user space as 'unknown'.")
    elif not known:
        lines.append("No KVM up to Linux 7.1 handles it; filters are made as if one could.")
    elif unknown:
        lines.append(f"No KVM up to Linux 7.1 handles {unknown[0]}: 'unknown'.")
    gone = [op for op in ("reads", "writes") if _gone(known, op)]
    if gone:
        lines.append(f"Later KVMs do not know {' and '.join(gone)}: 'unknown'.")
    if entry is not None and entry.kvm:
        lines.append(entry.kvm)
    return lines


def _gone(rows: list[Handling], op: str) -> bool:
    """Return whether KVMs have handled *op*, but the latest do not."""
    ends = [row.until for row in rows if getattr(row, op)]
    return bool(ends) and all(ends)


def _line(row: Handling) -> str:
    parts = []
    if row.reads and row.reads == row.writes:
        parts.append(f"reads and writes ({_HOW[row.reads]})")
    else:
        if row.reads:
            how = f"always {row.value:#x}" if row.reads == "constant" else _HOW[row.reads]
            parts.append(f"reads ({how})")
        if row.writes:
            parts.append(f"writes ({_HOW[row.writes]})")
    handle = "handles" if len(row.by) == 1 else "handle"
    note = f"; {row.note}" if row.note else ""
    return f"{' and '.join(row.by)} {handle} {' and '.join(parts)} {_versions(row)}{note}."


def _versions(row: Handling) -> str:
    if not row.since:
        return f"until {row.until}" if row.until else "since before 5.10"
    if row.until:
        return f"in {row.since} to {row.until}"
    unsure = f" or a little earlier (not in {row.not_in})" if row.not_in else ""
    return f"since {row.since}{unsure}"


def kvm_as_dict(index: int, entry: Msr | None) -> dict[str, Any]:
    """Return the same for programs: whether KVM may handle each direction, and how it does."""
    rows = handling(index)
    return {
        "reads": any(row.reads or "r" in row.doubt for row in rows),
        "writes": any(row.writes or "w" in row.doubt for row in rows),
        "ways": [_way(row) for row in rows if row.by],
        "about": entry.kvm if entry else "",
    }


def _way(row: Handling) -> dict[str, Any]:
    return {
        "by": list(row.by),
        "reads": row.reads,
        "writes": row.writes,
        "value": f"{row.value:#x}" if row.reads == "constant" else None,
        "since": row.since,
        "not_in": row.not_in,
        "until": row.until,
        "note": row.note,
    }
