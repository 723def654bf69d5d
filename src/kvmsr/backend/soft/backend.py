# SPDX-License-Identifier: Apache-2.0
"""
The soft backend
----------------

KVM's ioctls without a kernel: file descriptors are numbers of its own, and each stands for an
object of the modelled kernel.
"""

import errno
import itertools
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kvmsr.abi import ioctls
from kvmsr.backend.soft.cpu.selftest import check
from kvmsr.backend.soft.page import RunPage
from kvmsr.backend.soft.profile import find_profile
from kvmsr.backend.soft.run import kvm_run
from kvmsr.backend.soft.system import SYSTEM_IOCTLS, System
from kvmsr.backend.soft.uaccess import address_of_argument
from kvmsr.backend.soft.vcpu import Vcpu
from kvmsr.backend.soft.vcpu_ioctls import VCPU_IOCTLS
from kvmsr.backend.soft.vm import Vm
from kvmsr.backend.soft.vm_ioctls import VM_IOCTLS, create_vcpu
from kvmsr.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ("SoftBackend",)

_FIRST_FD: Final = 1 << 20
_KVM_RUN: Final = ioctls.KVM_RUN

# What Linux gives for a number that KVM does not have; for one that it has and this has not, it is
# always ENOTTY.
_UNKNOWN: Final = {System: errno.EINVAL, Vm: errno.ENOTTY, Vcpu: errno.EINVAL}
_HANDLERS: Final = {System: SYSTEM_IOCTLS, Vm: VM_IOCTLS, Vcpu: VCPU_IOCTLS}


class SoftBackend:
    """
    KVM in user space, with a software CPU.

    :param profile: the kernel that is modelled; see ``kvmsr.backend.soft.profile``.
    :param real_time: let a sleeping guest sleep, instead of moving its time; and let the guest's
        TSC count as fast as the host's.
    :raises BackendError: if the CPU's library is missing or is not as expected.
    :raises UsageError: if there is no such profile.
    """

    name = "soft"

    def __init__(self, profile: str, *, real_time: bool = False) -> None:
        self.profile = find_profile(profile)
        self._real_time = real_time
        self._numbers = itertools.count(_FIRST_FD)
        self._objects: dict[int, System | Vm | Vcpu] = {}
        self._lock = threading.Lock()
        check()

    def open(self) -> int:
        """Return a new system handle."""
        return self._add(System(self.profile))

    def ioctl(self, fd: int, request: int, arg: "int | Buffer" = 0) -> int:
        """Do an ioctl; see :meth:`kvmsr.backend.Backend.ioctl`."""
        thing = self._objects.get(fd)
        if thing is None:
            raise _error(errno.EBADF)
        if request == _KVM_RUN:
            if isinstance(thing, Vcpu):
                return kvm_run(thing)
        elif request == ioctls.KVM_CREATE_VM and isinstance(thing, System):
            return self._create_vm(arg)
        elif request == ioctls.KVM_CREATE_VCPU and isinstance(thing, Vm):
            return self._add(create_vcpu(thing, arg if isinstance(arg, int) else -1))
        else:
            handler = _HANDLERS[type(thing)].get(request)  # type: ignore[attr-defined]
            if handler is not None:
                result: int = handler(thing, address_of_argument(arg))
                return result
        raise _error(_refusal(thing, request))

    def run(self, fd: int, serve: Callable[[], bool]) -> None:
        """Do KVM_RUN; see :class:`kvmsr.backend.ServesInPlace`."""
        thing = self._objects.get(fd)
        if not isinstance(thing, Vcpu):
            raise _error(errno.EBADF if thing is None else _refusal(thing, _KVM_RUN))
        kvm_run(thing, serve)

    def memory_written(self, fd: int, address: int, length: int) -> None:
        """Take note of what user space wrote; see :class:`kvmsr.backend.KeepsCode`."""
        thing = self._objects.get(fd)
        if isinstance(thing, Vm):
            thing.memory_written(address, length)

    def create_vcpu(
        self, fd: int, vcpu_id: int, page: RunPage, *, handles_signals: bool = True
    ) -> int:
        """
        Do KVM_CREATE_VCPU, with a page that lies where the caller says.

        :param handles_signals: see :class:`kvmsr.backend.soft.signals.Watch`.
        :raises OSError: as KVM_CREATE_VCPU.
        """
        machine = self._objects.get(fd)
        if not isinstance(machine, Vm):
            raise _error(errno.EBADF if machine is None else errno.ENOTTY)
        vcpu = create_vcpu(machine, vcpu_id, page)
        vcpu.signals.handles = handles_signals
        return self._add(vcpu)

    def run_held(self, fd: int, blocked: int) -> None:
        """
        Do KVM_RUN for a caller that holds signals back.

        :param blocked: the signals that were blocked before, as bits.
        :raises OSError: as KVM_RUN.
        """
        thing = self._objects.get(fd)
        if not isinstance(thing, Vcpu):
            raise _error(errno.EBADF if thing is None else _refusal(thing, _KVM_RUN))
        thing.signals.blocked_outside = blocked
        kvm_run(thing)

    def mmap(self, fd: int, length: int) -> "Buffer":
        """Return a vCPU's kvm_run page and what follows it."""
        thing = self._objects.get(fd)
        if not isinstance(thing, Vcpu):
            raise _error(errno.EBADF if thing is None else errno.ENODEV)
        if length > len(thing.page.bytes):
            raise _error(errno.EINVAL)
        return thing.page.bytes

    def close(self, fd: int) -> None:
        """Close a handle."""
        thing = self._objects.pop(fd, None)
        if thing is not None:
            thing.close()

    def kick(self, fd: int) -> None:
        """Make the KVM_RUN of a vCPU return soon."""
        thing = self._objects.get(fd)
        if not isinstance(thing, Vcpu):
            raise UsageError(f"cannot kick fd {fd}: it is no vCPU of this backend")
        thing.kick()

    def _add(self, thing: System | Vm | Vcpu) -> int:
        fd = next(self._numbers)
        self._objects[fd] = thing
        return fd

    def _create_vm(self, arg: "int | Buffer") -> int:
        if arg != 0:
            raise _error(errno.EINVAL)
        return self._add(Vm(self.profile, real_time=self._real_time))


def _refusal(thing: System | Vm | Vcpu, request: int) -> int:
    if request in _KVM_HAS[type(thing)]:
        return errno.ENOTTY
    return _UNKNOWN[type(thing)]


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


_KVM_HAS: Final[dict[type, frozenset[int]]] = {
    System: frozenset(),
    Vm: frozenset(),
    Vcpu: frozenset(
        {
            ioctls.KVM_SMI, ioctls.KVM_X86_SET_MCE, ioctls.KVM_SET_TSC_KHZ,
            ioctls.KVM_KVMCLOCK_CTRL, ioctls.KVM_GET_XSAVE2, ioctls.KVM_GET_STATS_FD,
        }
    ),
}  # fmt: skip
"""What KVM takes on a handle and this backend does not."""
