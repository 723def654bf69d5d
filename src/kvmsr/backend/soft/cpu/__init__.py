# SPDX-License-Identifier: Apache-2.0
"""
The CPU
-------

Unicorn, used so that every MSR access comes out of it.
"""
