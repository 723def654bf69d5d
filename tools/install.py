#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Build kvmsr's wheel and install it into the environment of the Python that runs this, as users do:
what is tested is what they get. Does nothing where that is what the environment has.

    .venv/bin/python tools/install.py
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build"
WHEELS = BUILD / "wheels"
# The package and how it is built; the rest of what a wheel holds changes nothing that it does.
SOURCES = ("src/kvmsr", "pyproject.toml", "setup.py", "MANIFEST.in")
MADE = (".pyc", ".so")


def digest() -> str:
    """Return a name for the present state of all that the wheel is made of."""
    found = hashlib.sha256(str(shutil.which(os.environ.get("CC", "cc"))).encode())
    for source in SOURCES:
        path = ROOT / source
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix not in MADE:
                found.update(f"\0{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode())
                found.update(file.read_bytes())
    return found.hexdigest()[:16]


def state() -> str:
    """
    Return how kvmsr is installed in this environment.

    ``current``: as a wheel made of the project's files as they are now; ``stale``: as they were
    before; ``editable``: not at all, the files are used where they lie; ``foreign``: by others.
    """
    try:
        text = metadata.distribution("kvmsr").read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        text = None
    origin = json.loads(text or "{}")
    if origin.get("dir_info", {}).get("editable"):
        return "editable"
    url = origin.get("url", "")
    if url.startswith(f"{(WHEELS / digest()).as_uri()}/"):
        return "current"
    return "stale" if url.startswith(f"{WHEELS.as_uri()}/") else "foreign"


def pip(*words: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words, "--quiet"]
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def main() -> None:
    if state() == "current":
        return
    folder = WHEELS / digest()
    print("building kvmsr's wheel and installing it", flush=True)
    shutil.rmtree(BUILD, ignore_errors=True)  # setuptools would pack what is left in there
    pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, ".")
    pip("install", "--no-deps", "--no-index", "--force-reinstall", next(folder.glob("*.whl")))


if __name__ == "__main__":
    main()
