# SPDX-License-Identifier: Apache-2.0
"""
Policies as text
----------------

Reading policy files, and writing policies in the forms of other programs.
"""

from kvmsr.policy.file.parse import load_policy, parse_policy

__all__ = ("load_policy", "parse_policy")
