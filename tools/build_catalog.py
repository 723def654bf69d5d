#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Make src/kvmsr/msr/data/catalog.json and kvm.json, which are part of the package, from the files
that people maintain: those in data/names and data/details, and data/kvm.toml.

    tools/build_catalog.py
"""

from pathlib import Path

import msgspec

from kvmsr.msr.handling import read_handling
from kvmsr.msr.source import read_sources

DATA = Path(__file__).parent.parent / "src/kvmsr/msr/data"


def build(data: Path) -> bytes:
    """
    Return the catalog made from the files in folder *data*, a JSON array with an item per line: a
    table of where the entries start, counted from the second line, and the entries. What many have
    in common, all but index, names and description, is a line of its own before the first of them.
    """
    by_index: dict[int, list[int]] = {}
    by_name: dict[str, int] = {}
    shared: dict[bytes, int] = {}
    lines, start = [], 0
    for msr in read_sources(data):
        rest = msgspec.json.encode(
            msgspec.structs.replace(msr, index=0, name="", aliases=(), about="")
        )
        if rest not in shared:
            shared[rest] = start
            lines.append(rest)
            start += len(rest) + len(b",\n")
        names = [msr.name, *msr.aliases]
        by_index.setdefault(msr.index, []).append(start)
        for name in names:
            by_name.setdefault(name.lower(), start)
        lines.append(msgspec.json.encode([msr.index, names, msr.about, shared[rest]]))
        start += len(lines[-1]) + len(b",\n")
    table = msgspec.json.encode({"by_index": by_index, "by_name": by_name})
    return b"[\n" + b",\n".join([table, *lines]) + b"\n]\n"


def build_kvm(data: Path) -> bytes:
    """Return what KVM handles, as folder *data* has it, one row per line."""
    lines = map(msgspec.json.encode, read_handling(data / "kvm.toml"))
    return b"[\n" + b",\n".join(lines) + b"\n]\n"


if __name__ == "__main__":
    (DATA / "catalog.json").write_bytes(build(DATA))
    (DATA / "kvm.json").write_bytes(build_kvm(DATA))
