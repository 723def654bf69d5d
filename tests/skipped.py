"""
What a run ends with: how many tests were skipped for want of what, and, in capitals, which
peers (kernels, programs) are missing. With KVMSR_REQUIRE_PEERS=1 that fails the run.
"""

import os
import re
from collections import Counter

import pytest

from kvmsr.text import counted

NEED = re.compile(
    r"Skipped: needs (?P<what>.*?)(?P<peer>, which tools/fetch_peers\.py fetches)?\Z", re.S
)


def required():
    return os.environ.get("KVMSR_REQUIRE_PEERS", "0") != "0"


def missing(reporter):
    """Return, of the tests that were skipped, how many need which peer, and how many what else."""
    peers, others = Counter(), Counter()
    for report in reporter.stats.get("skipped", ()):
        found = NEED.match(report.longrepr[2])
        if found:
            (peers if found["peer"] else others)[found["what"]] += 1
    return peers, others


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    yield
    peers, others = missing(terminalreporter)
    for what, count in (others + peers).most_common():
        terminalreporter.write_line(f"{count} skipped for want of {what}")
    if peers:
        names, tests = ", ".join(peers).upper(), counted(peers.total(), "TEST", "TESTS")
        terminalreporter.write_line(
            f"NOT ALL OF IT RAN: {names} MISSING, {tests} SKIPPED. `make peers` says why.",
            red=True,
        )


@pytest.hookimpl
def pytest_sessionfinish(session):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if required() and missing(reporter)[0] and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
