# SPDX-License-Identifier: Apache-2.0
"""
Backend protocol
----------------

The five calls that every backend has, and nothing above this room needs more. What a backend may
have besides saves time and changes nothing.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ("Backend", "KeepsCode", "ServesInPlace")


@runtime_checkable
class Backend(Protocol):
    """
    Who executes guests: something that takes KVM's ioctls with KVM's bytes.

    File descriptors are the backend's own numbers: they mean something to the same backend only.
    """

    @property
    def name(self) -> str:
        """Return ``kvm`` or ``soft``."""

    def open(self) -> int:
        """
        Return a new system handle.

        :raises BackendError: if there is none to be had; says why and what to do.
        """

    def ioctl(self, fd: int, request: int, arg: "int | Buffer" = 0) -> int:
        """
        Do ioctl *request* on *fd* and return its result.

        :param arg: the argument itself, or a writable buffer whose address is passed. It need
            outlive the call only where KVM keeps the address (memory slots).
        :raises OSError: with the errno that KVM gives.
        """

    def mmap(self, fd: int, length: int) -> "Buffer":
        """Map the first *length* bytes of vCPU *fd*: the kvm_run page and what follows it."""

    def close(self, fd: int) -> None:
        """Close *fd*, once: another handle may have the number soon."""

    def kick(self, fd: int) -> None:
        """
        Make the KVM_RUN of vCPU *fd* return soon, or the next one if none is running.

        Callable from any thread. The vCPU must have been mapped.
        """


@runtime_checkable
class ServesInPlace(Protocol):
    """A backend that need not leave KVM_RUN to have an exit answered."""

    def run(self, fd: int, serve: Callable[[], bool]) -> None:
        """
        Do KVM_RUN on vCPU *fd*, and go on after exits that are answered.

        :param serve: called with an exit in the kvm_run page that the guest waits for; returns
            whether it has put the answer where that belongs. It may read the vCPU's state. It is
            not called where it would make a difference; then the exit ends KVM_RUN, as ever.
        :raises OSError: as KVM_RUN.
        """


@runtime_checkable
class KeepsCode(Protocol):
    """
    A backend that keeps translations of the guest's code, and sees only what the guest itself
    writes over it.
    """

    def memory_written(self, fd: int, address: int, length: int) -> None:
        """
        Take note that user space wrote to memory of VM *fd*, as a device does.

        Callable from any thread. What a vCPU executes there is what was written, as soon as the
        vCPU takes an interrupt or enters the guest.

        :param address: guest-physical; the bytes lie in one memory slot.
        """
