# SPDX-License-Identifier: Apache-2.0
"""
Shared memory
-------------

The memory that C works on, with the policy, the registers it keeps, and the summary. block.h
describes it.
"""

import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, Self

from kvmsr.errors import BrokenInvariantError, HostError
from kvmsr.native import ffi, lib

__all__ = ("Block", "access_reader")

_F_ADD_SEALS: Final = 1033
_SEALS: Final = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW


_ACCESS: Final = struct.Struct("=QIIBB")


def access_reader(cpu: Any) -> Callable[[], tuple[int, int, int, int, int]]:
    """
    Return a function that reads the last access of *cpu*, a ``struct kvmsr_cpu *``.

    It returns value, vCPU, index, op and reason. Reading all at once costs a third of reading them
    field by field.
    """
    return partial(_ACCESS.unpack_from, ffi.buffer(ffi.addressof(cpu, "access")))


class Block:
    """
    The shared memory of one run. Most of it uses no memory until it is touched.

    :param max_vcpus: number of vCPU records, at least 1.
    :ivar fd: the memory file, for another process to map.
    :ivar raw: the ``struct kvmsr_block``.
    :raises HostError: if the host refuses the memory.
    """

    def __init__(self, max_vcpus: int) -> None:
        size = lib.kvmsr_block_size(max_vcpus)
        try:
            self.fd = os.memfd_create("kvmsr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, _F_ADD_SEALS, _SEALS)
            self._mapping = mmap.mmap(self.fd, size)
        except OSError as error:
            raise HostError(f"cannot get memory for the policy: {error.strerror}") from None
        self.raw: Any = ffi.cast("struct kvmsr_block *", ffi.from_buffer(self._mapping))
        lib.kvmsr_block_make(self.raw, max_vcpus)

    @classmethod
    def opened(cls, fd: int) -> Self:
        """Map the memory of another process's run, to read it. *fd* is its memory file."""
        block = cls.__new__(cls)
        block.fd = fd
        block._mapping = mmap.mmap(fd, 0)
        block.raw = ffi.cast("struct kvmsr_block *", ffi.from_buffer(block._mapping))
        return block

    def install(self, table: bytes) -> None:
        """
        Put *table* in force, even while guests run.

        :raises BrokenInvariantError: if *table* is not valid, or cannot be replaced.
        """
        wrong = lib.kvmsr_install(self.raw, ffi.from_buffer(table), len(table))
        if wrong:
            raise BrokenInvariantError(f"the compiled policy: {ffi.string(wrong).decode()}")

    def take(self, vm: int, vcpu: int) -> Any:
        """Return a new ``struct kvmsr_vcpu`` for a vCPU of a VM."""
        record = lib.kvmsr_take_vcpu(self.raw, vm, vcpu)
        if not record:
            raise BrokenInvariantError("there are more vCPUs than records")
        return record

    def forget(self, vm: int) -> None:
        """Reset all shadowed MSRs of a VM."""
        lib.kvmsr_shadow_forget(self.raw, vm)

    def vcpus(self) -> Iterator[Any]:
        """Yield the records of all vCPUs, including those that are gone, in order of creation."""
        # How many there is room for, the mapping says: another process can write max_vcpus.
        none, one = lib.kvmsr_block_size(0), lib.kvmsr_block_size(1)
        room = (len(self._mapping) - none) // (one - none)
        for number in range(min(self.raw.n_vcpus, room)):
            record = lib.kvmsr_vcpu_at(self.raw, number)
            if record.taken:
                yield record

    def close(self) -> None:
        """Close the memory file. Do not use :attr:`raw`, or anything got from it, after that."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
