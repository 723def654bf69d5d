"""
Linux's own KVM selftests end the same way with ``kvmsr exec`` as without.

KVM_SELFTESTS names the folder with the programs, as ``make -C tools/testing/selftests/kvm`` leaves
them in a kernel's source: then all of them are tried, for as long as they take. Without it, it is
those for x86 that tools/fetch_peers.py has built, and on the host those that it has something for
and that are soon at their end.
"""

import json
import os
from pathlib import Path

import pytest

from kvmsr import native
from tests.attach.selftests import SECONDS, compare, programs
from tests.conftest import PEERS
from tests.nested.machine import run
from tests.nested.parts import MissingError, project_files

pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]

NAMED = os.environ.get("KVM_SELFTESTS")
FOLDER = Path(NAMED or PEERS / "selftests").absolute()
PROGRAMS = programs(FOLDER) or [None]
HOST_SECONDS = SECONDS if NAMED else 2
SKIPPED = 4  # KSFT_SKIP
UPSTREAM_SECONDS = 3000


def names(program):
    return program and program.name


def need_programs():
    if PROGRAMS == [None]:
        pytest.skip("needs selftests, which tools/fetch_peers.py fetches")


@pytest.mark.kvm
@pytest.mark.parametrize("program", PROGRAMS, ids=names)
def test_the_same_end(program):
    need_programs()
    alone, under_kvmsr = compare(program, HOST_SECONDS)
    if alone[0] is None:
        pytest.skip(f"needs a KVM on which {program.name} ends in {HOST_SECONDS} s")
    if alone[0] == SKIPPED and not NAMED:
        pytest.skip(f"needs a KVM that has what {program.name} tries")
    assert under_kvmsr == alone


@pytest.fixture(scope="module")
def upstream():
    """Return what came of each program in the nested machine, whose KVM is that of Linux 6.1."""
    need_programs()
    if not NAMED:
        pytest.skip("needs KVM_SELFTESTS: it takes minutes")
    words = ["-m", "tests.attach.selftests", str(FOLDER)]
    try:
        done = run(words, files=[*project_files(), *PROGRAMS], seconds=UPSTREAM_SECONDS)
    except MissingError as error:
        pytest.skip(f"needs {error}")
    lines = [json.loads(line) for line in done.output.splitlines() if line.startswith("[")]
    return {name: (alone, under_kvmsr) for name, alone, under_kvmsr in lines}


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=names)
def test_the_same_end_on_upstream(upstream, program):
    alone, under_kvmsr = upstream[program.name]
    if alone[0] is None:
        pytest.skip(f"needs a KVM on which {program.name} ends in time")
    assert under_kvmsr == alone
