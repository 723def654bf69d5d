# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say: how what is C is compiled. All else is there."""

import runpy
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

BUILD = "src/kvmsr/native/build.py"
build = runpy.run_path(BUILD)

# All that is compiled works with every Python from 3.11 on. Free-threaded ones have no stable ABI.
options = {} if sysconfig.get_config_var("Py_GIL_DISABLED") else {"py_limited_api": "cp311"}

setup(
    options={"bdist_wheel": options},
    # tools/make_wheels.py writes them.
    data_files=[("share/man/man1", sorted(map(str, Path("man").glob("*.1"))))],
    cffi_modules=[f"{BUILD}:make_ffi"],
    ext_modules=[
        Extension(
            "kvmsr.native.shim",  # no module: a library for LD_PRELOAD
            [f"{build['SOURCES']}/{name}" for name in build["SHIM"]],
            include_dirs=[build["SOURCES"]],
            extra_compile_args=[*build["CFLAGS"], "-fvisibility=hidden"],
            optional=True,
            py_limited_api=True,
        ),
        Extension(
            "kvmsr.native.soft",  # nor is this; it loads Python's library when it is needed
            [f"{build['SOURCES']}/{name}" for name in build["SOFT"]],
            extra_compile_args=[*build["CFLAGS"], "-fvisibility=hidden"],
            optional=True,
            py_limited_api=True,
        ),
        Extension(
            "kvmsr.backend.soft.cpu._tlb",  # no module either: Unicorn's functions call it
            ["src/kvmsr/backend/soft/cpu/tlb.c"],
            extra_compile_args=[*build["CFLAGS"], "-fvisibility=hidden"],
            optional=True,
            py_limited_api=True,
        ),
    ],
)
