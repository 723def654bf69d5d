"""What the tests of commands share."""

import pytest

from tests.conftest import kvm_missing


@pytest.fixture(params=["kvm", "soft"])
def backend(request):
    """Return the name of each backend that is here."""
    if request.param == "kvm" and kvm_missing():
        pytest.skip(f"needs /dev/kvm: {kvm_missing()}")
    return request.param
