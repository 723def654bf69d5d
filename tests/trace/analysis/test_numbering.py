"""Keys get the numbers that a dictionary would give them."""

import numpy as np
import pytest

from kvmsr.trace.analysis.numbering import _SLOTS, Numbering


@pytest.mark.parametrize("keys", [5, 300, 3 * _SLOTS])
@pytest.mark.parametrize("limit", [4, 1000, 1 << 20])
def test_numbers(keys, limit):
    random = np.random.default_rng(keys)
    known = random.integers(0, 1 << 64, keys, np.uint64)
    known[:3] = 0, (1 << 64) - 1, 1
    numbering, wanted = Numbering(limit), {}
    for _ in range(5):
        part = random.choice(known, 2000)
        found = numbering.numbers(part)
        for key in part.tolist():
            if len(wanted) < limit:
                wanted.setdefault(key, len(wanted))
        assert found.tolist() == [wanted.get(key, limit) for key in part.tolist()]
    assert numbering.keys == list(wanted)
