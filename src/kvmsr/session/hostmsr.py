# SPDX-License-Identifier: Apache-2.0
"""
The host's registers
--------------------

Read and write the MSRs of the host's CPUs through the msr device (Linux
arch/x86/kernel/msr.c): 8 bytes at the offset that is the MSR's index.
"""

import os
import threading
from pathlib import Path
from typing import Final

from kvmsr.errors import HostError
from kvmsr.policy import Host, Policy

__all__ = ("DeviceMsrs", "HostDevices")

_DEVICES: Final = Path("/dev/cpu")
_CPU_FIELD: Final = 36  # in /proc/…/stat, after the command's name: the CPU last run on


class DeviceMsrs:
    """
    The msr devices of the host's CPUs, each opened when it is first needed.

    :param devices: the folder that has a folder for each CPU.
    :param writable: open the devices for writing, too.
    """

    def __init__(self, devices: Path = _DEVICES, *, writable: bool = False) -> None:
        self._devices = devices
        self._flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
        self._fds: dict[int, int] = {}
        self._opening = threading.Lock()

    def check(self, cpu: int | None) -> None:
        """
        Open the device of *cpu*, or of the CPU that runs this thread, to report errors early.

        :raises HostError: if it cannot be opened.
        """
        number = running_on() if cpu is None else cpu
        try:
            self._open(number)
        except OSError as error:
            raise HostError(
                f"{self._file(number)} cannot be opened: {error.strerror}; the policy's host"
                " actions need the msr device: modprobe msr, as root"
            ) from None

    def read(self, cpu: int | None, index: int) -> int:
        """Return an MSR's value; see :class:`~kvmsr.dispatch.HostMsrs`."""
        data = os.pread(self._open(running_on() if cpu is None else cpu), 8, index)
        return int.from_bytes(data, "little")

    def write(self, cpu: int | None, index: int, value: int) -> None:
        """Write an MSR; see :class:`~kvmsr.dispatch.HostMsrs`."""
        number = running_on() if cpu is None else cpu
        os.pwrite(self._open(number), value.to_bytes(8, "little"), index)

    def close(self) -> None:
        """Close the devices."""
        with self._opening:
            for fd in self._fds.values():
                os.close(fd)
            self._fds.clear()

    def _file(self, cpu: int) -> Path:
        return self._devices / str(cpu) / "msr"

    def _open(self, cpu: int) -> int:
        fd = self._fds.get(cpu)
        if fd is None:
            with self._opening:
                fd = self._fds.get(cpu)
                if fd is None:
                    fd = self._fds[cpu] = os.open(self._file(cpu), self._flags)
        return fd


def running_on() -> int:
    """Return the number of the host's CPU that runs this thread, or did a moment ago."""
    stat = Path("/proc/thread-self/stat").read_text("utf-8", "replace")
    return int(stat.rpartition(")")[2].split()[_CPU_FIELD])


class HostDevices:
    """
    The msr devices for all policies of a run.

    They stay open until the run ends, because an access may still be on its way under a policy that
    has been replaced.
    """

    def __init__(self) -> None:
        self._opened: dict[bool, DeviceMsrs] = {}

    def for_policy(self, policy: Policy) -> DeviceMsrs | None:
        """
        Return the host's MSRs if *policy* needs them; otherwise None.

        :raises HostError: if it needs them and they cannot be reached.
        """
        actions = [action for rule in policy.rules for action in (rule.read, rule.write)]
        cpus = {action.cpu for action in actions if isinstance(action, Host)}
        if not cpus:
            return None
        writable = any(isinstance(rule.write, Host) for rule in policy.rules)
        msrs = self._opened.setdefault(writable, DeviceMsrs(writable=writable))
        for cpu in cpus:
            msrs.check(cpu)
        return msrs

    def close(self) -> None:
        """Close the devices."""
        for msrs in self._opened.values():
            msrs.close()
