# SPDX-License-Identifier: Apache-2.0
"""
Policy files
------------

Reads policy files, writes policies as text, and converts the formats of other programs.
"""

from kvmsr.policy.file.parse import Reading, load_policy, parse_policy, read_policy

__all__ = ("Reading", "load_policy", "parse_policy", "read_policy")
