# SPDX-License-Identifier: Apache-2.0
"""
The MSR filter
--------------

What KVM_X86_SET_MSR_FILTER installs, and how it decides (kvm_vm_ioctl_set_msr_filter and
kvm_msr_allowed of arch/x86/kvm/x86.c).
"""

import errno
import os
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ("READ", "WRITE", "MsrFilter")

READ, WRITE = 1, 2
"""The kinds of access, as in a range's flags."""

_DEFAULT_DENY: Final = 1
_RANGES: Final = 16
_RANGE: Final = struct.Struct("<III4xQ")
_FIRST_RANGE: Final = 8
_MAX_BITMAP: Final = 0x600
_X2APIC: Final = (0x800, 0x8FF)


class _Range(NamedTuple):
    flags: int
    base: int
    end: int
    bitmap: bytes


class MsrFilter:
    """A filter: ranges in order, and what holds outside of them."""

    __slots__ = ("_default", "_ranges")

    def __init__(self, ranges: tuple[_Range, ...], default: bool) -> None:
        self._ranges = ranges
        self._default = default

    @classmethod
    def from_bytes(cls, raw: bytes, read_user: Callable[[int, int], bytes]) -> "MsrFilter":
        """
        Return the filter that a struct kvm_msr_filter describes; its bitmaps are copied.

        :param read_user: reads *size* bytes at an address of user space, or raises EFAULT.
        :raises OSError: EINVAL or EFAULT, for the first thing that is wrong, in KVM's order.
        """
        flags = int.from_bytes(raw[:4], "little")
        given = [_RANGE.unpack_from(raw, _FIRST_RANGE + _RANGE.size * n) for n in range(_RANGES)]
        is_empty = not any(nmsrs for _, nmsrs, _, _ in given)
        if flags & ~_DEFAULT_DENY or (is_empty and flags & _DEFAULT_DENY):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        # A slot without MSRs is passed over whatever else it says; the others close ranks.
        ranges = tuple(_copied(one, read_user) for one in given if one[1])
        return cls(ranges, not flags & _DEFAULT_DENY)

    def allowed(self, index: int, kind: int) -> bool:
        """Return whether an access of *kind* to MSR *index* goes on to KVM's handler."""
        if _X2APIC[0] <= index <= _X2APIC[1]:
            return True
        for flags, base, end, bitmap in self._ranges:
            if flags & kind and base <= index < end:
                at = index - base
                return bool(bitmap[at >> 3] >> (at & 7) & 1)
        return self._default


def _copied(given: tuple[int, int, int, int], read_user: Callable[[int, int], bytes]) -> _Range:
    flags, nmsrs, base, pointer = given
    size = (nmsrs + 63) // 64 * 8  # whole words, however few MSRs
    if not flags or flags & ~(READ | WRITE) or size > _MAX_BITMAP:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    # The end wraps at 32 bits: such a range matches nothing.
    return _Range(flags, base, base + nmsrs & 0xFFFF_FFFF, read_user(pointer, size))
