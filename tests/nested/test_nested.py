# SPDX-License-Identifier: Apache-2.0
"""The nested machine, and the conformance items on the upstream KVM in it."""

import pytest

from tests.conformance import registry
from tests.conformance.__main__ import nested
from tests.nested.machine import NestedError, run
from tests.nested.parts import MissingError

pytestmark = [pytest.mark.slow, pytest.mark.peer]
ITEMS = registry.load()


def _run(arguments, **options):
    try:
        return run(arguments, **options)
    except MissingError as error:
        pytest.skip(f"needs {error}")


@pytest.fixture(scope="module")
def outcomes():
    """Return what comes of each item, by kernel and number; one boot is for all."""
    try:
        found = nested(list(ITEMS.values()))
    except MissingError as error:
        pytest.skip(f"needs {error}")
    return {name: {r.number: r for r in results} for name, results in found.items()}


@pytest.mark.parametrize("number", ITEMS)
def test_item_on_upstream(outcomes, number):
    results = {name: by_number[number] for name, by_number in outcomes.items()}
    failed = {name: r.detail for name, r in results.items() if r.outcome == "fail"}
    assert not failed
    if all(result.outcome == "n/a" for result in results.values()):
        pytest.skip(f"not applicable: {next(iter(results.values())).detail}")


def test_both_ways_to_complete_are_tried(outcomes):
    plain, emulating = sorted(outcomes)
    assert plain.startswith("nested:linux-")
    assert emulating == f"{plain}-emulator"


def test_status_and_output_come_out():
    done = _run(["-c", "import sys; print('€'); sys.exit('and why')"])
    assert (done.status, done.output) == (1, "€\n")
    assert "and why" in done.console


def test_a_machine_that_hangs_is_ended():
    with pytest.raises(NestedError, match="not at its end after 3 s"):
        _run(["-c", "while True: pass"], seconds=3)
