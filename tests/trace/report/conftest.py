"""Traces to report on, and a real browser to look at the pages with."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from kvmsr.trace.file import LATENCY
from kvmsr.trace.file.columns import VALUE
from tests.conftest import peer
from tests.trace.file.made import BEGAN_NS, events, trace

POLICY = """\
[policy]
name = "quiet"

[[rule]]
msr = 0x10
read = { value = 1 }

[[rule]]
msr = 0x35
read = { value = 2 }

[defaults]
unknown = "fault"
"""
RULES = ["quiet.toml:4", "defaults.unknown", "C handler"]
FIRED, NEVER = "quiet.toml:4", "quiet.toml:8"
DROPPED = 500


def boot(path, count=10_000, *, seed=1, rules=RULES, **head):
    """Write a trace like that of a boot: two bursts of accesses, and some that were dropped."""
    made = events(count, seed=seed, rip=True)
    random = np.random.default_rng(seed)
    made["rip"] = 0xFFFFFFFF81000000 + random.integers(0, 12, count).astype(np.uint64) * 16
    made["value"] &= np.uint64(0xFF)
    made["value"][made["has"] & VALUE == 0] = 0
    if count > 10:
        made["time_ns"][count // 2 :] += np.uint64(2_000_000_000)
        made["count"][-1] = DROPPED
        made["has"][-1] &= 0xFF & ~LATENCY
        made["latency_ns"][-1] = 0
    given = {"backend": "soft", "policy": "quiet.toml", "policy_text": {"/a/quiet.toml": POLICY}}
    return trace(path, made, rules, began_ns=BEGAN_NS, **(given | head))


@pytest.fixture(scope="session")
def browser():
    """Return Chromium: the system's, or the fetched one with its libraries."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    system = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    environment = dict(os.environ)
    if system is None:
        binary = peer("chromium", "usr/lib/chromium/chromium")
        libraries = {str(path.parent) for path in binary.parents[3].glob("**/*.so*")}
        environment["LD_LIBRARY_PATH"] = ":".join(sorted(libraries))
        system = str(binary)
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=system, env=environment)
        yield chromium
        chromium.close()


@pytest.fixture
def artefacts(tmp_path):
    """Return where screenshots are kept: KVMSR_ARTEFACTS, or the test's own folder."""
    folder = Path(os.environ.get("KVMSR_ARTEFACTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
