# SPDX-License-Identifier: Apache-2.0
"""
What we hold
------------

Disagreements in which the catalog stands, each with its reason: ``held.toml``.
"""

import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from tests.msr.agreement.compare import Difference

__all__ = ("Held", "read_held")


class Held(NamedTuple):
    """A disagreement in which the catalog stands. All but *reason* may be patterns."""

    header: str
    msr: str
    aspect: str
    ours: str
    theirs: str
    reason: str

    def about(self, header: str) -> bool:
        """Return whether it is about *header* in particular."""
        return self.header != "*" and fnmatchcase(header, self.header)

    def covers(self, difference: Difference) -> bool:
        """Return whether it is this disagreement."""
        return all(map(fnmatchcase, difference, self))


def read_held() -> list[Held]:
    """Return the rows of ``held.toml``."""
    text = Path(__file__).with_name("held.toml").read_text("utf-8")
    return [Held(**row) for row in tomllib.loads(text)["held"]]
