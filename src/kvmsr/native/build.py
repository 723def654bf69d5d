# SPDX-License-Identifier: Apache-2.0
"""
Building the native core
------------------------

What setup.py lets cffi compile. Without a compiler, the package is installed without the core.

Every constant, enum, structure and function is declared once, in the headers. cffi does not read C
as a compiler does, so :func:`declarations` brings a header into the form that cffi understands.
"""

import re
from pathlib import Path

from cffi import FFI

__all__ = ("CFLAGS", "CORE", "HEADERS", "SHIM", "SOFT", "SOURCES", "declarations", "make_ffi")

SOURCES = "src/kvmsr/native/c"
"""The folder of the C files, relative to the project's folder, where setup.py runs."""

HEADERS = ("table.h", "block.h", "core.h")
CFLAGS = ["-std=gnu11", "-O2", "-Wall", "-Wextra"]
CORE = [
    "access.c", "block.c", "evaluate.c", "kvm.c", "life.c", "loop.c", "recent.c", "record.c",
    "shadow.c", "table.c", "upcall.c", "where.c",
]  # fmt: skip
SHIM = [
    *(name for name in CORE if name != "loop.c"),
    "merge.c", "attach.c", "descriptors.c", "vmm.c", "reset.c", "answer.c", "shim.c",
]  # fmt: skip
SOFT = [
    "soft/signals.c", "soft/python.c", "soft/objects.c", "soft/files.c", "soft/ioctl.c",
]  # fmt: skip

_CHANGES = (
    (r"/\*[\s\S]*?\*/", ""),
    (r"static inline[^{]*\{[\s\S]*?\n\}", ""),
    (r"^#define \w+$", ""),  # an include guard
    (r"^#define (\w+) .*$", r"#define \1 ..."),  # the compiler finds the value
    (r"^#(?!define).*$", ""),
    (r"__attribute__\(\(.*\)\)", ""),
    (r"^\t.*(\]\[|\[\]).*;.*$", ""),  # nested and open arrays: Python calls a function for them
    (r"\[[^\]]*[A-Z][^\]]*\]", "[...]"),
    (r"^(struct \w+ \{[^}]*)\}", r"\1\t...;\n}"),  # the compiler finds the offsets
)


def declarations(header: str) -> str:
    """Return the declarations of *header*, the text of one of kvmsr's headers, for cffi."""
    for pattern, replacement in _CHANGES:
        header = re.sub(pattern, replacement, header, flags=re.MULTILINE)
    return header


def make_ffi() -> FFI:
    """Return the FFI builder of the core, for setup.py."""
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
