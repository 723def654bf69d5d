"""
Read traces that were changed at random::

    python -m tests.trace.file.fuzz ROUNDS [SEED]

Prints how many were read to their end, up to a cut, and refused. Anything else is a traceback, or a
crash. What is read is also summarised.
"""

import random
import sys
import tempfile
from pathlib import Path

from kvmsr.errors import TraceError
from kvmsr.trace.analysis import TraceSummary
from kvmsr.trace.file import Head, Trace, TraceWriter
from tests.trace.file.made import RULES, events
from tests.trace.file.test_file import mutate

MEMORY = "/dev/shm"


def main(rounds, seed):
    chance = random.Random(seed)
    whole = cut = refused = 0
    with tempfile.TemporaryDirectory(dir=MEMORY if Path(MEMORY).is_dir() else None) as name:
        path = Path(name) / "trace"
        with TraceWriter(path, Head(image="made"), rip=True, callers=2) as writer:
            for part in range(2):
                writer.write(events(20, seed=part, callers=2), RULES)
        good = path.read_bytes()
        for _ in range(rounds):
            path.write_bytes(mutate(good, chance))
            try:
                with Trace(path) as trace:
                    summary = TraceSummary(trace.head, max_rows=30)
                    for batch in trace.batches():
                        assert len(trace.rules) > int(batch["rule"].max())
                        assert batch["op"].max() < 2
                        summary.add(batch, trace.rules)
                    rows = [*summary.rows(), *summary.others()]
                    assert sum(row.count for row in rows) == sum(summary.totals().values()) - sum(
                        row.faults for row in rows
                    )
                whole, cut = whole + (not trace.cut), cut + bool(trace.cut)
            except TraceError as error:
                assert "\n" not in str(error), error
                refused += 1
    print(whole, cut, refused)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1)
