# SPDX-License-Identifier: Apache-2.0
"""
Learning
--------

Turn traces into a policy that gives guests the outcomes that were recorded.

Each MSR is learned by itself: candidates from the language's rules are tried on what was recorded
(``fit.py``), and the simplest that gives every outcome is taken.
"""

from kvmsr.trace.learn.learn import Learned, learn

__all__ = ("Learned", "learn")
