"""The site, built once, and a browser to look at it with."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.trace.report.conftest import artefacts, browser

__all__ = ("artefacts", "browser")


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Return the folder of the site. A warning of Sphinx is an error."""
    pytest.importorskip("sphinx", reason="needs sphinx")
    target = tmp_path_factory.mktemp("site") / "site"
    made = subprocess.run(
        [sys.executable, "-m", "tools.site", target],
        cwd=ROOT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    return target
