# SPDX-License-Identifier: Apache-2.0
"""What pyproject.toml cannot say: how the native core is compiled. All else is there."""

import runpy

from setuptools import Extension, setup

NATIVE = "src/kvmsr/_native"
build = runpy.run_path(f"{NATIVE}/build.py")

setup(
    cffi_modules=[f"{NATIVE}/build.py:ffi"],
    ext_modules=[
        Extension(
            "kvmsr._native.shim",  # no module: a library for LD_PRELOAD
            [f"{NATIVE}/{name}" for name in build["SHIM"]],
            include_dirs=[NATIVE],
            extra_compile_args=[*build["CFLAGS"], "-fvisibility=hidden"],
            optional=True,
            py_limited_api=True,
        )
    ],
)
