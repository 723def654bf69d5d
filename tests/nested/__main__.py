# SPDX-License-Identifier: Apache-2.0
"""Runs Python in the nested machine: ``python -m tests.nested ARGUMENTS``."""

import sys

from tests.nested.machine import NestedError, run
from tests.nested.parts import MissingError

if __name__ == "__main__":
    try:
        done = run(sys.argv[1:])
    except MissingError as error:
        sys.exit(f"needs {error}")
    except NestedError as error:
        sys.exit(f"the nested machine: {error}")
    print(done.console, file=sys.stderr)
    print(done.output, end="")
    sys.exit(done.status)
