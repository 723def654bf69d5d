"""
kvm-unit-tests on the soft backend: the table in docs/reference/kvm-unit-tests.md is what comes out.

A line that newly passes makes the test of its row fail as well as one that no longer does: the
table is to be kept true.
"""

import os
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.command import run_guest
from tests.conftest import ROOT

pytestmark = [pytest.mark.peer, pytest.mark.slow]

QUICK = 8  # seconds: rows that take longer are for whoever has the time
PATIENCE = 120
VERDICTS = ("PASS", "FAIL", "SKIP")


class Row(NamedTuple):
    """A row of the table: an image, options of `kvmsr run`, and what comes of them."""

    image: str
    options: str
    passes: int
    fails: int
    skips: int
    end: str
    seconds: int


def rows():
    text = (ROOT / "docs/reference/kvm-unit-tests.md").read_text()
    lines = (line for line in text.splitlines() if line.startswith("| `"))
    cells = (re.split(r"\s*\|\s*", line)[1:-1] for line in lines)
    return [
        Row(image.strip("`"), options.strip("` "), int(passes), int(fails), int(skips), end, int(s))
        for image, options, passes, fails, skips, end, s, _why in cells
    ]


QUICK_ROWS = [row for row in rows() if row.seconds <= QUICK]


@pytest.mark.parametrize("row", QUICK_ROWS, ids=lambda row: f"{row.image} {row.options}".strip())
def test_the_table_is_what_comes_out(row, tmp_path):
    folder = os.environ.get("KVM_UNIT_TESTS")
    if not folder:
        pytest.skip("needs KVM_UNIT_TESTS, the folder with the images of kvm-unit-tests")
    image = Path(folder) / f"{row.image}.flat"
    if not image.exists():
        pytest.skip(f"needs {image}")
    result, console = run_guest(
        tmp_path, "--timeout", PATIENCE, *shlex.split(row.options), image,
        backend="soft", timeout=2 * PATIENCE,
    )  # fmt: skip
    lines = {kind: re.findall(rf"^{kind}\b.*", console, re.MULTILINE) for kind in VERDICTS}
    end = result["exit"]
    assert [len(lines[kind]) for kind in VERDICTS] == [row.passes, row.fails, row.skips], lines[
        "FAIL"
    ]
    assert (f"exit {end['code']}" if end["kind"] == "debug-exit" else end["kind"]) == row.end


def test_the_table_has_rows_that_can_be_run():
    assert len(QUICK_ROWS) > 40
    assert all(row.fails == 0 for row in rows() if row.end == "exit 1")
