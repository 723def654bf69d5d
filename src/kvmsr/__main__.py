# SPDX-License-Identifier: Apache-2.0
"""``python -m kvmsr`` is ``kvmsr``."""

from kvmsr.cli import main

main()
