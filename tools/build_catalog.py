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
    Return the catalog made from the files in folder *data*, one entry per line. What entries have
    in common, all but index, names and description, comes first, and has a number.
    """
    shared: dict[bytes, int] = {}
    rows = []
    for msr in read_sources(data):
        rest = msgspec.structs.replace(msr, index=0, name="", aliases=(), about="")
        number = shared.setdefault(msgspec.json.encode(rest), len(shared))
        row = [msr.index, [msr.name, *msr.aliases], msr.about, number]
        rows.append(msgspec.json.encode(row))
    parts = (b",\n".join(shared), b",\n".join(rows))
    return b'{"shared": [\n%b\n], "rows": [\n%b\n]}\n' % parts


def build_kvm(data: Path) -> bytes:
    """Return what KVM handles, as folder *data* has it, one row per line."""
    lines = map(msgspec.json.encode, read_handling(data / "kvm.toml"))
    return b"[\n" + b",\n".join(lines) + b"\n]\n"


if __name__ == "__main__":
    (DATA / "catalog.json").write_bytes(build(DATA))
    (DATA / "kvm.json").write_bytes(build_kvm(DATA))
