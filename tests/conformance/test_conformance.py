# SPDX-License-Identifier: Apache-2.0
"""Each item of the checklist on each KVM that is here; and the suite tells historical defects."""

from functools import cache

import pytest

from kvmsr.errors import KvmsrError
from tests.backend.soft.mutants import mutated
from tests.conformance import registry, targets

ITEMS = registry.load()
ON = ["kvm", *targets.profiles(), "linux-6.18-amd,force_emulation_prefix"]


@cache
def target(name):
    """Return a target, or why it is not here."""
    try:
        return targets.host() if name == "kvm" else targets.soft(name)
    except KvmsrError as error:
        return f"needs {name}: {error}"


@pytest.mark.parametrize("number", ITEMS)
@pytest.mark.parametrize("on", ON)
def test_item(on, number):
    there = target(on)
    if isinstance(there, str):
        pytest.skip(there)
    result = there.run(ITEMS[number])
    if result.outcome == "n/a":
        pytest.skip(f"not applicable: {result.detail}")
    assert result.outcome == "pass", result.detail


def test_there_is_an_item_for_each_number_once():
    assert len(ITEMS) >= 150
    assert all(item.statement for item in ITEMS.values())


# Defects that the interface had on its way into Linux, where they show, and by which items.
MUTANTS = [
    ("M1", "linux-6.18-amd", {"C-064"}),
    ("M1", "pvm", {"C-064"}),
    ("M2", "linux-6.18-amd", {"C-026"}),
    ("M3", "linux-6.18-amd", {"C-023"}),
    ("M4", "linux-6.18-amd", {"C-068"}),
    ("M5", "pvm", {"C-050", "C-051"}),
    ("M6", "linux-6.18-amd", {"C-177"}),
]


@pytest.mark.parametrize(("mutant", "profile", "numbers"), MUTANTS)
def test_the_suite_fails_on(mutant, profile, numbers):
    there = target(profile)
    if isinstance(there, str):
        pytest.skip(there)

    with mutated(mutant):
        assert {n for n in numbers if there.run(ITEMS[n]).outcome == "fail"} == numbers
