# SPDX-License-Identifier: Apache-2.0
"""
``python -m tests.msr.agreement``: print how the catalog agrees with edk2's and ia32-doc's headers,
and each difference, with the reason for which we hold it.
"""

import os
import sys

from tests.msr.agreement.held import read_held
from tests.msr.agreement.report import SOURCES, report, table


def main() -> int:
    """Return 0 if there is a reason for every difference, otherwise 1."""
    named = [variable for variable in SOURCES if variable in os.environ]
    if not named:
        print(f"set {' or '.join(SOURCES)} to the folder with that source tree", file=sys.stderr)
        return 2
    held, left = read_held(), 0
    for variable in named:
        done = report(variable)
        for difference in (one for header in done.headers for one in header.differences):
            reasons = [row.reason for row in held if row.covers(difference)]
            header, msr, aspect, ours, theirs = difference
            print(f"{header}: {msr} {aspect}: ours {ours or '-'}, theirs {theirs}")
            print(f"    {reasons[0] if reasons else 'NO REASON'}")
        left += len(done.open)
        print(f"\n{variable}\n{table(done)}\n")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
