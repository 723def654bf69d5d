"""What the tests of the soft backend share."""

import pytest

from kvmsr import backend
from tests.conformance.kernel import named
from tests.conformance.world import World


@pytest.fixture
def world():
    """Return a function that opens a profile; its VMs and vCPUs end with the test."""
    opened = []

    def make(profile="linux-6.1-amd"):
        made = World(backend.open("soft", profile=profile), named(profile.split(",")[0]), None)
        opened.append(made)
        return made

    yield make
    for each in opened:
        each.close()
