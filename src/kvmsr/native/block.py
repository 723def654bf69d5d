# SPDX-License-Identifier: Apache-2.0
"""
Shared memory
-------------

The memory in which a policy, the registers that it keeps and the summary lie, for C to work on: see
block.h.
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
_SEALS: Final = 0x1 | 0x2 | 0x4  # nobody seals it further, shrinks it or lets it grow


_ACCESS: Final = struct.Struct("=QIIBB")


def access_reader(cpu: Any) -> Callable[[], tuple[int, int, int, int, int]]:
    """
    Return what reads the last access of *cpu*, a ``struct kvmsr_cpu *``: value, vCPU, index, op and
    reason. All at once it costs a third of what it does field by field.
    """
    return partial(_ACCESS.unpack_from, ffi.buffer(ffi.addressof(cpu, "access")))


class Block:
    """
    Memory of one run; most of it takes no room until it is used.

    :param max_vcpus: for how many vCPUs there is a record, 1 or more.
    :ivar fd: the memory file, for another process to map.
    :ivar raw: the ``struct kvmsr_block``.
    :raises HostError: if the host does not give it.
    """

    def __init__(self, max_vcpus: int) -> None:
        size = lib.kvmsr_block_size(max_vcpus)
        try:
            self.fd = os.memfd_create("kvmsr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, _F_ADD_SEALS, _SEALS)
            self._mapping = mmap.mmap(self.fd, size)
        except OSError as error:
            raise HostError(f"cannot have memory for the policy: {error.strerror}") from None
        self.raw: Any = ffi.cast("struct kvmsr_block *", ffi.from_buffer(self._mapping))
        lib.kvmsr_block_make(self.raw, max_vcpus)

    @classmethod
    def opened(cls, fd: int) -> Self:
        """Return the memory of another process's run, which *fd* holds, to read from."""
        block = cls.__new__(cls)
        block.fd = fd
        block._mapping = mmap.mmap(fd, 0)
        block.raw = ffi.cast("struct kvmsr_block *", ffi.from_buffer(block._mapping))
        return block

    def install(self, table: bytes) -> None:
        """
        Let *table* be the policy from now on, also while guests run.

        :raises BrokenInvariantError: if it is no table; says why.
        """
        wrong = lib.kvmsr_install(self.raw, ffi.from_buffer(table), len(table))
        if wrong:
            raise BrokenInvariantError(f"the compiled policy: {ffi.string(wrong).decode()}")

    def take(self, vm: int, vcpu: int) -> Any:
        """Return a fresh ``struct kvmsr_vcpu`` for a vCPU of a VM."""
        record = lib.kvmsr_take_vcpu(self.raw, vm, vcpu)
        if not record:
            raise BrokenInvariantError("there are more vCPUs than records")
        return record

    def forget(self, vm: int) -> None:
        """Reset what a VM has written to shadowed MSRs."""
        lib.kvmsr_shadow_forget(self.raw, vm)

    def vcpus(self) -> Iterator[Any]:
        """Yield the record of each vCPU there has been, in the order of their making."""
        for number in range(min(self.raw.n_vcpus, self.raw.max_vcpus)):
            record = lib.kvmsr_vcpu_at(self.raw, number)
            if record.taken:
                yield record

    def close(self) -> None:
        """Give the memory back; :attr:`raw` and what came of it are not to be used any more."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
