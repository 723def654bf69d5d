# SPDX-License-Identifier: Apache-2.0
"""
Policies as text
----------------

Reading policy files, and writing policies in the forms of other programs.
"""

from kvmsr.policy.file.parse import Reading, load_policy, parse_policy, read_policy

__all__ = ("Reading", "load_policy", "parse_policy", "read_policy")
