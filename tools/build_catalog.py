#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Make src/kvmsr/msr/data/catalog.json, the catalog that is part of the package, from the files in
data/names and data/details that people maintain.

    tools/build_catalog.py
"""

from pathlib import Path

import msgspec

from kvmsr.msr.source import read_sources

DATA = Path(__file__).parent.parent / "src/kvmsr/msr/data"


def build(data: Path) -> bytes:
    """Return the catalog made from the files in folder *data*, one entry per line."""
    entries = read_sources(data)
    lines = [msgspec.json.encode([msr.index, [msr.name, *msr.aliases], msr]) for msr in entries]
    return b"[\n" + b",\n".join(lines) + b"\n]\n"


if __name__ == "__main__":
    (DATA / "catalog.json").write_bytes(build(DATA))
