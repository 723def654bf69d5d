# SPDX-License-Identifier: Apache-2.0
"""
``python -m tests.msr.agreement``: print how the catalog agrees with edk2's and ia32-doc's headers.
"""

import os
import sys
from pathlib import Path

from tests.msr.agreement.compare import Agreement, compare
from tests.msr.agreement.headers import read_edk2, read_ia32_doc


def table(done: list[Agreement]) -> str:
    """Return the counts of *done* as text, a line for each header and aspect."""
    return "\n".join(
        f"{one.header:20} {aspect:7} " + ", ".join(f"{n} {what}" for what, n in counts.most_common())
        for one in done
        for aspect, counts in sorted(one.counts.items())
    )


def main() -> int:
    headers = [
        header
        for name, read in (("KVMSR_EDK2", read_edk2), ("KVMSR_IA32_DOC", read_ia32_doc))
        if name in os.environ
        for header in read(Path(os.environ[name]))
    ]
    done = [compare(header) for header in headers]
    for one in done:
        for difference in one.differences:
            print(*difference, sep=" | ")
    print(table(done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
