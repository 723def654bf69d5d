# SPDX-License-Identifier: Apache-2.0
"""
Errors
------

Every error that kvmsr raises on purpose::

    KvmsrError
    ├── UsageError                the caller asked for something that cannot be
    │   ├── ExitUnansweredError   KVM_RUN again although an MSR exit has no answer yet
    │   └── ExitAnsweredError     an MSR exit answered twice, or too late
    ├── PolicyError               a policy that cannot be read, or that says what cannot be
    │   └── FilterCapacityError   a policy that needs more filter ranges than KVM takes
    ├── UnknownMsrError           no MSR has this name
    ├── FieldError                a field or a value that an MSR does not have
    ├── CatalogError              a source of the MSR catalog that is not as it must be
    ├── ImageError                a guest image that cannot be loaded
    ├── HostError                 the host lacks something
    │   ├── BackendError          no backend can be opened
    │   ├── CapabilityError       this KVM lacks a capability
    │   └── GuestMemoryError          guest memory that cannot be had
    ├── IoctlError                an ioctl failed
    ├── MsrListError              KVM_GET_MSRS or KVM_SET_MSRS stopped at an MSR
    └── BrokenInvariantError      never happens; if it does, it is our bug

A message names what failed, the value, and what to do about it.
"""

import errno
import os
from typing import ClassVar, Final

from kvmsr.text import one_line

__all__ = (
    "BackendError",
    "BrokenInvariantError",
    "CapabilityError",
    "CatalogError",
    "ExitAnsweredError",
    "ExitUnansweredError",
    "FieldError",
    "FilterCapacityError",
    "GuestMemoryError",
    "HostError",
    "ImageError",
    "IoctlError",
    "KvmsrError",
    "MsrListError",
    "PolicyError",
    "UnknownMsrError",
    "UsageError",
)

_HINTS: Final[dict[tuple[str, int], str]] = {
    ("KVM_CREATE_VCPU", errno.EEXIST): "a vCPU with this number exists already",
    ("KVM_CREATE_VCPU", errno.EINVAL): "more vCPUs than this KVM takes",
    ("KVM_SET_USER_MEMORY_REGION", errno.EEXIST): "the slot overlaps another one",
    ("KVM_SET_USER_MEMORY_REGION", errno.EINVAL): "address and size must be whole pages",
    ("KVM_CREATE_IRQCHIP", errno.EEXIST): "create the irqchip once, before any vCPU",
    ("KVM_CREATE_PIT2", errno.EEXIST): "the PIT exists already",
    ("KVM_CREATE_PIT2", errno.ENOENT): "create the irqchip first",
    ("KVM_X86_SET_MSR_FILTER", errno.EINVAL): (
        "DEFAULT_DENY needs a range, a range takes 1 to 0x3000 MSRs and read or write"
    ),
    ("KVM_ENABLE_CAP", errno.EINVAL): "this capability, on this kind of file descriptor, or these"
    " arguments are not known to the kernel",
    ("KVM_SET_CPUID2", errno.EINVAL): "KVM refuses to change CPUID once the vCPU has run",
    ("KVM_SET_CPUID2", errno.E2BIG): "more CPUID leaves than KVM takes",
}


_GENERAL_HINTS: Final[dict[int, str]] = {
    errno.ENOMEM: "the host is out of memory",
    errno.EMFILE: "this process may open no more files: raise the limit with ulimit -n",
    errno.ENFILE: "the host has no more file handles",
    errno.ENOTTY: "this KVM does not know the call: it is older, or its backend lacks it",
}


class KvmsrError(Exception):
    """
    The root of kvmsr's errors; the message is one line, whatever file names and values are in it.

    :cvar exit_status: the exit status of the command line.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class UsageError(KvmsrError):
    """The caller asked for something that cannot be."""

    exit_status = 2


class ExitUnansweredError(UsageError):
    """KVM_RUN was to be entered although an MSR exit has no answer; KVM would answer 0."""


class ExitAnsweredError(UsageError):
    """An MSR exit was answered twice, or after its vCPU had gone on."""


class PolicyError(KvmsrError):
    """
    A policy that cannot be read, or that says what cannot be.

    :ivar file: the file, or "" for a policy that came from none.
    :ivar line: the line in it, from 1; 0 where there is none to name.
    :ivar key: the key, as in ``rule[2].read``.
    """

    exit_status = 3

    def __init__(self, message: str, *, file: str = "", line: int = 0, key: str = "") -> None:
        self.file = file
        self.line = line
        self.key = key
        place = f"{file}:{line}: " if line else f"{file}: " if file else ""
        super().__init__(f"{place}{f'{key}: ' if key else ''}{message}")


class FilterCapacityError(PolicyError):
    """A policy that needs more filter ranges than KVM takes."""


class UnknownMsrError(KvmsrError):
    """
    No MSR has this name.

    :ivar name: the name asked for.
    :ivar nearest: known names that look like it.
    """

    exit_status = 3

    def __init__(self, name: str, nearest: list[str]) -> None:
        self.name = name
        self.nearest = nearest
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        super().__init__(f"no MSR is called {name!r}{hint}")


class FieldError(KvmsrError):
    """A field or a value that an MSR does not have."""

    exit_status = 2


class CatalogError(KvmsrError):
    """A file of the MSR catalog's sources that is not as it must be."""


class ImageError(KvmsrError):
    """A guest image that cannot be loaded."""

    exit_status = 3


class HostError(KvmsrError):
    """The host lacks something."""

    exit_status = 4


class BackendError(HostError):
    """No backend, or not the one asked for, can be opened."""


class CapabilityError(HostError):
    """This KVM lacks a capability that is needed."""


class GuestMemoryError(HostError):
    """Guest memory that cannot be had."""


class IoctlError(KvmsrError):
    """
    An ioctl failed.

    :ivar ioctl: its name, ``KVM_SET_SREGS`` say.
    :ivar errno: the error number.
    """

    exit_status = 4

    def __init__(self, ioctl: str, number: int, what: str = "") -> None:
        self.ioctl = ioctl
        self.errno = number
        name = errno.errorcode.get(number, str(number))
        hint = _HINTS.get((ioctl, number)) or _GENERAL_HINTS.get(number)
        super().__init__(
            f"{ioctl}{f' ({what})' if what else ''} failed: {os.strerror(number)} [{name}]"
            + (f": {hint}" if hint else "")
        )


class MsrListError(KvmsrError):
    """
    KVM_GET_MSRS or KVM_SET_MSRS stopped before the end of its list.

    KVM does the entries in order and stops at the first that fails; what came before it is done.

    :ivar index: the MSR that failed.
    :ivar done: how many entries came before it.
    """

    exit_status = 4

    def __init__(self, ioctl: str, index: int, done: int, total: int, value: int | None) -> None:
        self.ioctl = ioctl
        self.index = index
        self.done = done
        self.total = total
        what = f"MSR {index:#x}" + ("" if value is None else f" = {value:#x}")
        super().__init__(
            f"{ioctl}: KVM refuses {what}, entry {done} of {total}; the {done} before it are done"
        )


class BrokenInvariantError(KvmsrError):
    """
    This should never happen.

    If you see it, please report it with the message: something that kvmsr relies on did not hold.
    """
