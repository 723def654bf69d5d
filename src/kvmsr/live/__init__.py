# SPDX-License-Identifier: Apache-2.0
"""
Live view
---------

A run as it goes on, on the terminal: ``kvmsr top`` and ``kvmsr run --live``. It is a client of the
run, as ``kvmsr ctl`` is.
"""

__all__ = ()
