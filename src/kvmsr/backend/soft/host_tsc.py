# SPDX-License-Identifier: Apache-2.0
"""
The host's TSC
--------------

How fast it counts. A VMM that reads the TSC itself expects the guest's to be as fast, as it is
under KVM; so it is where time is real.
"""

import ctypes
import functools
import mmap
import platform
import time
from collections.abc import Callable
from typing import Final

__all__ = ("host_tsc_khz",)

_RDTSC: Final = b"\x0f\x31\x48\xc1\xe2\x20\x48\x09\xd0\xc3"
"""rdtsc; shl $32, %rdx; or %rdx, %rax; ret"""
_MEASURE_NS: Final = 5_000_000
_TRIES: Final = 20


@functools.cache
def host_tsc_khz() -> int | None:
    """Return what the host's TSC counts in a millisecond, to a few hundredths of a percent; None
    where there is none, or no code of one's own may be executed."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    page.write(_RDTSC)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    begun, tsc = _moment(read)
    while time.perf_counter_ns() - begun < _MEASURE_NS:
        pass
    ended, later = _moment(read)
    return round((later - tsc) * 1_000_000 / (ended - begun))


def _moment(read: Callable[[], int]) -> tuple[int, int]:
    """Return a time in nanoseconds and the TSC then: of some tries, the least disturbed."""
    tries = []
    for _ in range(_TRIES):
        before, tsc, after = time.perf_counter_ns(), read(), time.perf_counter_ns()
        tries.append((after - before, (before + after) // 2, tsc))
    _, moment, tsc = min(tries)
    return moment, tsc
