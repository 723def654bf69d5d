# SPDX-License-Identifier: Apache-2.0
"""
What a policy has to know of a VM
---------------------------------

Facts of one VM, from whoever runs it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ("VmFacts",)


def _no_memory(address: int, size: int) -> bytes | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class VmFacts:
    """
    Facts of a VM.

    :ivar vcpus: how many vCPUs it has, at least 1.
    :ivar clock: returns the guest's time in nanoseconds, never less than before.
    :ivar rip: returns a vCPU's RIP, called in that vCPU's thread; None where rules that ask for it
        are decided elsewhere.
    :ivar memory: returns so many bytes at a guest-physical address, or None where there is no RAM.
    """

    vcpus: int = 1
    clock: Callable[[], int] = time.monotonic_ns
    rip: Callable[[int], int] | None = None
    memory: Callable[[int, int], bytes | None] = _no_memory
