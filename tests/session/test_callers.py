"""Who called the function that accesses an MSR, as traces, handlers, logs and conditions see it."""

import numpy as np
import pytest

from kvmsr.machine import Boot
from kvmsr.trace import TraceOptions
from kvmsr.trace.file import Trace
from tests.session.calls import POLICY, build, check
from tests.session.test_recording import machine


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    return build(tmp_path_factory.mktemp("calls"))


def run(kind, tmp_path, image, text=POLICY, **options):
    """Run the guest with a trace; return its result and the rows of the trace."""
    (tmp_path / "policy.toml").write_text(text)
    path = tmp_path / "trace"
    with machine(kind, tmp_path / "policy.toml", TraceOptions(path, **options)) as guest:
        guest.load(Boot(image, mode=16))
        result = guest.run(60)
    with Trace(path) as trace:
        return result, np.concatenate(list(trace.batches()))


def test_what_the_guest_called(kind, tmp_path, calls):
    image, places = calls
    result, rows = run(kind, tmp_path, image, callers=8)
    assert result.exit_status == 1  # isa-debug-exit: 2 * 0 + 1
    check(rows, places)
