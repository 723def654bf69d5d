"""Which processes belong to a run."""

import os
import subprocess
import sys
import time

import pytest

from kvmsr.attach.processes import BLOCK, Processes


@pytest.fixture
def started():
    begun = []

    def start(code):
        """Run some Python. What it starts inherits no descriptors, and so not the life line."""
        words = [sys.executable, "-c", f"import subprocess; {code}"]
        made = Processes(words, sys.executable, os.environ | {BLOCK: "1:2:3"})
        begun.append(made)
        return made

    yield start
    for one in begun:
        one.close()


def lasts(processes):
    """Return for how many seconds a run lasts after its first process."""
    processes.child.wait(20)
    begun = time.monotonic()
    while not processes.over():
        time.sleep(0.02)
    return time.monotonic() - begun


def test_a_run_lasts_as_long_as_a_process_with_its_environment(started):
    assert 1 < lasts(started("subprocess.Popen(['sleep', '2'])")) < 20


def test_a_process_without_an_environment_is_waited_for(started):
    """It may be about to get one: execve(2) takes the old one away first."""
    assert 0.5 < lasts(started("subprocess.Popen(['sleep', '4'], env={})")) < 3


def test_one_that_was_there_before_is_not(started):
    other = subprocess.Popen(["env", "-i", "sleep", "30"])
    time.sleep(0.3)
    try:
        assert lasts(started("")) < 0.5
    finally:
        other.kill()
        other.wait()
