# SPDX-License-Identifier: Apache-2.0
"""
Symbols
-------

The names of a guest kernel's functions, for the addresses in a trace and the conditions of a
policy.
"""

from kvmsr.symbols.symbols import Symbols

__all__ = ("Symbols",)
