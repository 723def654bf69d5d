# SPDX-License-Identifier: Apache-2.0
"""
Handles
-------

What the three kinds of KVM file descriptors have in common.
"""

import os
from typing import TYPE_CHECKING, Self

from kvmsr.abi import cap_name, ioctls, vm
from kvmsr.backend.protocol import Backend
from kvmsr.errors import IoctlError, UsageError
from kvmsr.kvm import stats

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ("Handle",)


class Handle:
    """
    A file descriptor of a backend; closed by :meth:`close` or at the end of a ``with``.

    :ivar backend: whose file descriptor it is.
    :ivar fd: its number.
    """

    def __init__(self, backend: Backend, fd: int) -> None:
        self.backend = backend
        self.fd = fd

    def close(self) -> None:
        """Close the file descriptor; again is harmless."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            self.backend.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def raw_ioctl(self, request: int, arg: "int | Buffer" = 0) -> int:
        """Do an ioctl and let the OSError through, for callers that know what to make of it."""
        if self.fd < 0:
            raise UsageError(f"this {type(self).__name__} is closed")
        return self.backend.ioctl(self.fd, request, arg)

    def ioctl(self, request: int, arg: "int | Buffer" = 0, what: str = "") -> int:
        """
        Do an ioctl that has no method here, or one that has.

        :param what: what it was for, for the message.
        :raises IoctlError: if it fails.
        """
        try:
            return self.raw_ioctl(request, arg)
        except OSError as error:
            name = ioctls.NAMES.get(request, f"ioctl {request:#x}")
            raise IoctlError(name, error.errno or 0, what) from None

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> None:
        """
        Enable a capability (KVM_ENABLE_CAP), on a VM or on a vCPU as the capability demands.

        :param args: up to four numbers whose meaning the capability gives.
        """
        if len(args) > 4:
            raise UsageError(f"{cap_name(cap)}: {len(args)} arguments, KVM_ENABLE_CAP takes 4")
        enable = vm.EnableCap(cap=cap, flags=flags)
        for position, value in enumerate(args):
            if not 0 <= value < 1 << 64:
                raise UsageError(f"{cap_name(cap)}: argument {value:#x} does not fit 64 bits")
            enable.args[position] = value
        self.ioctl(ioctls.KVM_ENABLE_CAP, enable, cap_name(cap))


def read_stats(handle: Handle) -> dict[str, stats.Stat]:
    """Return KVM's counters for a VM or a vCPU (KVM_GET_STATS_FD)."""
    fd = handle.ioctl(ioctls.KVM_GET_STATS_FD)
    try:
        return stats.read(fd)
    finally:
        os.close(fd)
