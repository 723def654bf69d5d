"""Each backend that is here, and a catalog that speaks of no guest's CPU after a test."""

import pytest

from kvmsr.msr import catalog
from tests.cli.conftest import backend

__all__ = ("backend",)


@pytest.fixture(autouse=True)
def silent_catalog():
    yield
    catalog().cpu = None
