#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Run the commands in pages of the documentation, and put what they print below them.

    tools/renew_docs.py docs/reference/decode.md

Commands are the lines of ``console`` blocks that begin with ``$ kvmsr``. A test fails if a page is
not as this makes it.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def output(command: str) -> str:
    """Return what *command* prints: ``$ kvmsr ARGUMENT…``."""
    words = shlex.split(command.removeprefix("$ "))
    assert words[0] == "kvmsr", command
    done = subprocess.run(
        [sys.executable, "-m", "kvmsr", *words[1:]],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    return done.stdout


def commands(page: str) -> list[tuple[str, str]]:
    """Return the commands in a page, with what it says that they print."""
    found = []
    for block in _BLOCK.findall(page):
        for part in re.split(r"^(?=\$ )", block, flags=re.MULTILINE):
            command, newline, shown = part.partition("\n")
            if newline:
                found.append((command, shown))
    return found


def renewed(page: str) -> str:
    """Return a page with what its commands print now."""

    def run(block: re.Match[str]) -> str:
        made = (f"{command}\n{output(command)}" for command, _ in commands(block[0]))
        return f"```console\n{''.join(made)}```"

    return _BLOCK.sub(run, page)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        path = Path(name)
        path.write_text(renewed(path.read_text()))
