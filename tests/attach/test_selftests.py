"""
Linux's own KVM selftests end the same way with ``kvmsr exec`` as without.

KVM_SELFTESTS names the folder with the programs, as ``make -C tools/testing/selftests/kvm`` leaves
them in a kernel's source.
"""

import json
import os
from pathlib import Path

import pytest

from kvmsr import native
from tests.attach.selftests import compare, programs
from tests.nested.machine import run
from tests.nested.parts import MissingError, project_files

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]

FOLDER = os.environ.get("KVM_SELFTESTS")
PROGRAMS = programs(Path(FOLDER)) if FOLDER else [None]
UPSTREAM_SECONDS = 3000


def names(program):
    return program and program.name


def need_programs():
    if not FOLDER:
        pytest.skip("needs KVM_SELFTESTS, the folder with Linux's KVM selftests")


@pytest.mark.kvm
@pytest.mark.parametrize("program", PROGRAMS, ids=names)
def test_the_same_end(program):
    need_programs()
    alone, under_kvmsr = compare(program)
    if alone[0] is None:
        pytest.skip(f"needs a KVM on which {program.name} ends in time")
    assert under_kvmsr == alone


@pytest.fixture(scope="module")
def upstream():
    """Return what came of each program in the nested machine, whose KVM is that of Linux 6.1."""
    need_programs()
    words = ["-m", "tests.attach.selftests", FOLDER]
    try:
        done = run(words, files=[*project_files(), *PROGRAMS], seconds=UPSTREAM_SECONDS)
    except MissingError as error:
        pytest.skip(f"needs {error}")
    lines = [json.loads(line) for line in done.output.splitlines() if line.startswith("[")]
    return {name: (alone, under_kvmsr) for name, alone, under_kvmsr in lines}


@pytest.mark.peer
@pytest.mark.parametrize("program", PROGRAMS, ids=names)
def test_the_same_end_on_upstream(upstream, program):
    alone, under_kvmsr = upstream[program.name]
    if alone[0] is None:
        pytest.skip(f"needs a KVM on which {program.name} ends in time")
    assert under_kvmsr == alone
