"""
Linux's own KVM selftests: on the soft backend they end as docs/reference/kvm-selftests.md says,
and on a KVM with ``kvmsr exec`` as without.

They are those that tools/fetch_peers.py has built; of those on the host's KVM, the ones that it has
something for and that are soon at their end. KVM_SELFTESTS names another folder, such as ``make -C
tools/testing/selftests/kvm`` leaves: then all are tried, on upstream's KVM, too, for as long as
that takes.
"""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from kvmsr import native
from tests.attach.selftests import SECONDS, alone, programs, under_exec
from tests.attach.test_soft import why_not_soft
from tests.conftest import PEERS, ROOT
from tests.nested.machine import run
from tests.nested.parts import MissingError, project_files

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]

NAMED = os.environ.get("KVM_SELFTESTS")
FOLDER = Path(NAMED or PEERS / "selftests").absolute()
PROGRAMS = {path.name: path for path in programs(FOLDER)}
HOST_SECONDS = SECONDS if NAMED else 2
UPSTREAM_SECONDS = 3000
SKIPPED = 4  # KSFT_SKIP
OF_MSRS = "userspace_msr_exit_test"
PREFIX_ON = {"kvm": "force_emulation_prefix=1"}
TIMED = ("hyperv_clock", "xapic_ipi_test")
"""One allows clocks to differ by a percent, the other looks for progress: on a busy host they fail
now and then."""
TRIES = 4
STATUS = {"pass": 0, "skip": SKIPPED, "fail": 254}


class Row(NamedTuple):
    """A row of the table: a program, and how it ends on soft and elsewhere."""

    program: str
    soft: str
    upstream: str
    pvm: str
    seconds: int
    why: str


def rows():
    text = (ROOT / "docs/reference/kvm-selftests.md").read_text()
    lines = (line for line in text.splitlines() if line.startswith("| `"))
    cells = (re.split(r"\s*\|\s*", line)[1:-1] for line in lines)
    return [
        Row(program.strip("`"), soft, upstream, pvm, int(seconds), why)
        for program, soft, upstream, pvm, seconds, why in cells
    ]


def named(name):
    """Return a program's path, or skip the test."""
    if name not in PROGRAMS:
        pytest.skip("needs selftests, which tools/fetch_peers.py fetches")
    return PROGRAMS[name]


# On soft


@pytest.mark.skipif(bool(why_not_soft()), reason=f"needs {why_not_soft()}")
@pytest.mark.parametrize("row", rows(), ids=lambda row: row.program)
def test_the_table_is_what_comes_out(row):
    options = ("--backend", "soft", "--soft-profile", "linux-6.1-amd")
    for _ in range(TRIES if row.program in TIMED else 1):
        status, faults = under_exec(named(row.program), *options)
        if status == STATUS[row.soft]:
            break
    assert status == STATUS[row.soft], faults


@pytest.mark.skipif(bool(why_not_soft()), reason=f"needs {why_not_soft()}")
def test_with_the_forced_emulation_prefix_too():
    profile = "linux-6.1-amd,force_emulation_prefix"
    options = ("--backend", "soft", "--soft-profile", profile)
    assert under_exec(named(OF_MSRS), *options) == (0, [])


def test_whatever_differs_from_upstream_has_a_reason():
    assert len(rows()) == 32
    assert all(row.why for row in rows() if row.soft != row.upstream or row.soft == "fail")


# On the host's KVM


@pytest.mark.kvm
@pytest.mark.parametrize("name", PROGRAMS or [OF_MSRS])
def test_the_same_end(name):
    program = named(name)
    bare = alone(program, HOST_SECONDS)
    if bare[0] is None:
        pytest.skip(f"needs a KVM on which it ends in {HOST_SECONDS} s")
    if bare[0] == SKIPPED and not NAMED:
        pytest.skip("needs a KVM that has what it tries")
    assert under_exec(program) == bare


# On upstream's


@pytest.fixture(scope="module")
def upstream():
    """
    Return what came of each program in the nested machine, whose KVM is that of Linux 6.1.

    Its force_emulation_prefix is on, which concerns the test of MSRs alone.
    """
    chosen = list(PROGRAMS.values()) if NAMED else [named(OF_MSRS)]
    try:
        done = run(
            ["-m", "tests.attach.selftests", *map(str, chosen)],
            files=[*project_files(), *chosen], seconds=UPSTREAM_SECONDS, parameters=PREFIX_ON,
        )  # fmt: skip
    except MissingError as error:
        pytest.skip(f"needs {error}")
    lines = [json.loads(line) for line in done.output.splitlines() if line.startswith("[")]
    return {name: (bare, under_kvmsr) for name, bare, under_kvmsr in lines}


@pytest.mark.slow
def test_the_test_of_msrs_passes_in_full(upstream):
    assert upstream[OF_MSRS] == ([0, []], [0, []])


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS if NAMED else [OF_MSRS])
def test_the_same_end_on_upstream(upstream, name):
    bare, under_kvmsr = upstream[name]
    if bare[0] is None:
        pytest.skip("needs a KVM on which it ends in time")
    if under_kvmsr != bare and name in TIMED:
        pytest.skip("needs a host that is less busy")
    assert under_kvmsr == bare


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", [row for row in rows() if NAMED or row.program == OF_MSRS], ids=lambda row: row.program
)
def test_the_table_says_what_upstream_does(upstream, row):
    named(row.program)
    status = upstream[row.program][0][0]
    if status != STATUS[row.upstream] and row.program in TIMED:
        pytest.skip("needs a host that is less busy")
    assert status == STATUS[row.upstream]
