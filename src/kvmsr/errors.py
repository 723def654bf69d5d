# SPDX-License-Identifier: Apache-2.0
"""
Errors
------

Every error that kvmsr raises on purpose::

    KvmsrError
    ├── UsageError                an invalid argument or call
    │   ├── ExitUnansweredError   the vCPU was run again before its MSR exit was answered
    │   └── ExitAnsweredError     an MSR exit was answered twice, or too late
    ├── PolicyError               a policy cannot be read, or is invalid
    │   └── FilterCapacityError   a policy needs more filter ranges than KVM supports
    ├── UnknownMsrError           no MSR has this name
    ├── FieldError                an MSR does not have this field or value
    ├── CatalogError              a source file of the MSR catalog is invalid
    ├── ImageError                a guest image cannot be loaded
    ├── TraceError                a trace file cannot be read or written
    ├── SymbolError               a kernel's symbols cannot be read, or lack a function
    ├── HostError                 the host lacks something
    │   ├── BackendError          no backend can be opened
    │   ├── CapabilityError       this KVM lacks a capability
    │   └── GuestMemoryError      guest memory cannot be allocated
    ├── IoctlError                an ioctl failed
    ├── MsrListError              KVM_GET_MSRS or KVM_SET_MSRS stopped at an MSR
    └── BrokenInvariantError      a bug in kvmsr

Each message names what failed, the value, and what to do about it.
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
    "SymbolError",
    "TraceError",
    "UnknownMsrError",
    "UsageError",
)

_HINTS: Final[dict[tuple[str, int], str]] = {
    ("KVM_CREATE_VCPU", errno.EEXIST): "there is already a vCPU with this number",
    ("KVM_CREATE_VCPU", errno.EINVAL): "more vCPUs than this KVM supports",
    ("KVM_SET_USER_MEMORY_REGION", errno.EEXIST): "the slot overlaps another slot",
    ("KVM_SET_USER_MEMORY_REGION", errno.EINVAL): "address and size must be whole pages",
    ("KVM_CREATE_IRQCHIP", errno.EEXIST): "create the irqchip once, before the first vCPU",
    ("KVM_CREATE_PIT2", errno.EEXIST): "there is already a PIT",
    ("KVM_CREATE_PIT2", errno.ENOENT): "create the irqchip first",
    ("KVM_X86_SET_MSR_FILTER", errno.EINVAL): (
        "DEFAULT_DENY needs at least one range; a range covers 1 to 0x3000 MSRs, for reads, writes"
        " or both"
    ),
    ("KVM_ENABLE_CAP", errno.EINVAL): (
        "the kernel does not support this capability with these arguments, or not on this kind of"
        " file descriptor"
    ),
    ("KVM_SET_CPUID2", errno.EINVAL): "KVM does not change CPUID once the vCPU has run",
    ("KVM_SET_CPUID2", errno.E2BIG): "more CPUID leaves than KVM supports",
}


_GENERAL_HINTS: Final[dict[int, str]] = {
    errno.ENOMEM: "the host is out of memory",
    errno.EMFILE: "this process has too many open files: raise the limit with ulimit -n",
    errno.ENFILE: "too many files are open on the host",
    errno.ENOTTY: "this KVM does not support the call: it is too old, or its backend lacks it",
}


class KvmsrError(Exception):
    """
    The base class of kvmsr's errors. The message is one line, whatever it quotes.

    :cvar exit_status: the exit status of the command line.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class UsageError(KvmsrError):
    """An argument or a call is invalid."""

    exit_status = 2


class ExitUnansweredError(UsageError):
    """A vCPU was run again before its MSR exit was answered; KVM would have answered 0."""


class ExitAnsweredError(UsageError):
    """An MSR exit was answered twice, or after its vCPU had been run again."""


class PolicyError(KvmsrError):
    """
    A policy cannot be read, or is invalid.

    :ivar file: the file, or "" if the policy did not come from a file.
    :ivar line: the line in the file, from 1, or 0 if unknown.
    :ivar key: the key, such as ``rule[2].read``.
    """

    exit_status = 3

    def __init__(self, message: str, *, file: str = "", line: int = 0, key: str = "") -> None:
        self.file = file
        self.line = line
        self.key = key
        place = f"{file}:{line}: " if line else f"{file}: " if file else ""
        super().__init__(f"{place}{f'{key}: ' if key else ''}{message}")


class FilterCapacityError(PolicyError):
    """A policy needs more filter ranges than KVM supports."""


class UnknownMsrError(KvmsrError):
    """
    No MSR has this name.

    :ivar name: the name that was looked up.
    :ivar nearest: known names that are similar.
    """

    exit_status = 3

    def __init__(self, name: str, nearest: list[str]) -> None:
        self.name = name
        self.nearest = nearest
        hint = f"; did you mean {' or '.join(nearest)}?" if nearest else ""
        super().__init__(f"no MSR is called {name!r}{hint}")


class FieldError(KvmsrError):
    """An MSR does not have this field, or the field does not have this value."""

    exit_status = 2


class CatalogError(KvmsrError):
    """A source file of the MSR catalog is invalid."""


class ImageError(KvmsrError):
    """A guest image cannot be loaded."""

    exit_status = 3


class TraceError(KvmsrError):
    """A trace file cannot be read or written."""

    exit_status = 3


class SymbolError(KvmsrError):
    """A kernel's symbols cannot be read, or do not have a function."""

    exit_status = 3


class HostError(KvmsrError):
    """The host lacks something."""

    exit_status = 4


class BackendError(HostError):
    """The backend, or with ``auto`` any backend, cannot be opened."""


class CapabilityError(HostError):
    """This KVM lacks a capability that kvmsr needs."""


class GuestMemoryError(HostError):
    """Guest memory cannot be allocated."""


class IoctlError(KvmsrError):
    """
    An ioctl failed.

    :ivar ioctl: the name of the ioctl, such as ``KVM_SET_SREGS``.
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

    KVM processes the entries in order and stops at the first that fails. The entries before it have
    taken effect.

    :ivar ioctl: the name of the ioctl.
    :ivar index: the MSR that failed.
    :ivar done: the number of entries before it.
    :ivar total: the number of entries in the list.
    """

    exit_status = 4

    def __init__(self, ioctl: str, index: int, done: int, total: int, value: int | None) -> None:
        self.ioctl = ioctl
        self.index = index
        self.done = done
        self.total = total
        what = f"MSR {index:#x}" + ("" if value is None else f" = {value:#x}")
        super().__init__(
            f"{ioctl}: KVM refuses {what}, entry {done + 1} of {total}; the entries before it have"
            " taken effect"
        )


class BrokenInvariantError(KvmsrError):
    """
    This should never happen: something that kvmsr relies on did not hold.

    If you see this error, please report it with its message.
    """
