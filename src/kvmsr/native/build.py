# SPDX-License-Identifier: Apache-2.0
"""
Building the native core
------------------------

What setup.py has cffi compile. Without a compiler the package is installed all the same, and goes
without.

The headers declare every constant, enum, structure and function once. cffi reads declarations, not
C as a compiler does, so a header is brought into the form that it reads: see :func:`declarations`.
"""

import re
from pathlib import Path

from cffi import FFI

__all__ = ("CFLAGS", "CORE", "HEADERS", "SHIM", "SOURCES", "declarations", "make_ffi")

SOURCES = "src/kvmsr/native/c"
"""Where the C is, from the project's folder, in which setup.py runs."""

HEADERS = ("table.h", "block.h", "core.h")
CFLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra"]
CORE = [
    "access.c", "block.c", "evaluate.c", "kvm.c", "loop.c", "record.c", "shadow.c", "upcall.c",
]  # fmt: skip
SHIM = [
    *(name for name in CORE if name != "loop.c"),
    "merge.c", "attach.c", "descriptors.c", "vmm.c", "answer.c", "shim.c",
]  # fmt: skip

_CHANGES = (
    (r"/\*[\s\S]*?\*/", ""),
    (r"static inline[^{]*\{[\s\S]*?\n\}", ""),
    (r"^#define \w+$", ""),  # a guard
    (r"^#define (\w+) .*$", r"#define \1 ..."),  # the compiler says how much that is
    (r"^#(?!define).*$", ""),
    (r"__attribute__\(\(.*\)\)", ""),
    (r"^\t.*(\]\[|\[\]).*;.*$", ""),  # arrays of arrays, or without an end: by functions
    (r"\[[^\]]*[A-Z][^\]]*\]", "[...]"),
    (r"^(struct \w+ \{[^}]*)\}", r"\1\t...;\n}"),  # the compiler says where each field is
)


def declarations(header: str) -> str:
    """Return what *header*, the text of one of ours, declares, as cffi reads it."""
    for pattern, replacement in _CHANGES:
        header = re.sub(pattern, replacement, header, flags=re.MULTILINE)
    return header


def make_ffi() -> FFI:
    """Return what cffi compiles."""
    made = FFI()
    for name in HEADERS:
        made.cdef(declarations(Path(SOURCES, name).read_text()))
    made.set_source(
        "kvmsr.native._core",
        '#include "core.h"\n',
        sources=[f"{SOURCES}/{name}" for name in CORE],
        include_dirs=[SOURCES],
        extra_compile_args=CFLAGS,
        optional=True,
    )
    return made
