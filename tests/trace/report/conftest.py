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


def chromium():
    """Return how to start Chromium: the system's, or the fetched one with its libraries."""
    system = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if system:
        return {"executable_path": system}
    binary = peer("chromium", "usr/lib/chromium/chromium")
    libraries = {str(path.parent) for path in binary.parents[3].glob("**/*.so*")}
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(sorted(libraries))}
    return {"executable_path": str(binary), "env": environment}


@pytest.fixture(scope="module")
def browser():
    """Return Chromium.

    One per module: while playwright runs, its event loop counts as running in this thread, and
    asyncio.run() of the next module's tests would be refused.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(**chromium())
        yield found
        found.close()


@pytest.fixture
def artefacts(tmp_path):
    """Return where screenshots are kept: KVMSR_ARTEFACTS, or the test's own folder."""
    folder = Path(os.environ.get("KVMSR_ARTEFACTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
