#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes the virtual environment $1 with all that kvmsr and its development need, but kvmsr itself:
# tools/install.py puts that in. Says what to do where that cannot be.
set -eu
venv=$1
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "kvmsr needs Python 3.11 or later, and '$python' is none; try PYTHON=/path/to/python3.11" >&2
    exit 1
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing python3-venv, which Debian keeps apart from Python"
        { apt-get -qq update && apt-get -qq install -y --no-install-recommends python3-venv; } \
            >/dev/null
    else
        echo "Python's venv module is missing; on Debian: sudo apt install python3-venv" >&2
        exit 1
    fi
fi
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
if ! { command -v cc && [ -f "$headers/Python.h" ]; } >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing gcc and python3-dev for the native core"
        { apt-get -qq update && apt-get -qq install -y --no-install-recommends \
            gcc libc6-dev linux-libc-dev python3-dev; } >/dev/null || true
    else
        echo "no C compiler or no Python headers: kvmsr goes without its native core" >&2
    fi
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "installing what kvmsr and its development need into $venv"
"$venv/bin/python" - >"$venv/requirements.txt" <<'END'
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())
extras = project["project"]["optional-dependencies"]
needs = project["build-system"]["requires"] + project["project"]["dependencies"]
print(*needs, *extras["dev"], *extras["docs"], sep="\n")
END
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$venv/requirements.txt"
