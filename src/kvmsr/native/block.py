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

__all__ = ("Block", "access_reader", "question_reader")

_F_ADD_SEALS: Final = 1033
_FIXED: Final = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
_READ_ONLY: Final = 0x10  # F_SEAL_FUTURE_WRITE: for everybody but this process's mapping

_ACCESS: Final = struct.Struct("=QIIBB")


def access_reader(holder: Any) -> Callable[[], tuple[int, int, int, int, int]]:
    """
    Return a function that reads the access in a structure, such as a ``struct kvmsr_cpu *``.

    It returns value, vCPU, index, op and reason. Reading all at once costs a third of reading them
    field by field.
    """
    return partial(_ACCESS.unpack_from, ffi.buffer(ffi.addressof(holder, "access")))


_QUESTION: Final = (
    ("I", "serial"), ("Q", "access", "value"), ("I", "access", "index"), ("B", "access", "op"),
    ("B", "access", "reason"), ("I", "outcome", "rule"), ("B", "outcome", "verdict"),
)  # fmt: skip


def question_reader(asked: Any) -> Callable[[], tuple[int, ...]]:
    """
    Return a function that reads a ``struct kvmsr_upcall *``, all at once.

    It returns the serial, the access's value, index, op and reason, and the outcome's rule and
    verdict.
    """
    form, end = "=", 0
    for code, *path in _QUESTION:
        at = ffi.offsetof("struct kvmsr_upcall", *path)
        form, end = f"{form}{at - end}x{code}", at + struct.calcsize(f"={code}")
    return partial(struct.Struct(form).unpack_from, ffi.buffer(asked))


class Block:
    """
    The shared memory of one run. Most of it uses no memory until it is touched.

    :param max_vcpus: number of vCPU records, at least 1.
    :ivar fd: the memory file of the block, for another process to map.
    :ivar tables_fd: the memory file of the tables, which other processes can only read.
    :ivar raw: the ``struct kvmsr_block``.
    :ivar tables: the ``struct kvmsr_tables``; None if this process did not make the block.
    :ivar max_vcpus: number of vCPU records.
    :raises HostError: if the host refuses the memory.
    """

    def __init__(self, max_vcpus: int) -> None:
        self.fd = self.tables_fd = -1
        self.max_vcpus = max_vcpus
        try:
            self.fd, self._mapping = _memory(lib.kvmsr_block_size(max_vcpus), 0)
            size = ffi.sizeof("struct kvmsr_tables")
            self.tables_fd, self._tables_mapping = _memory(size, _READ_ONLY)
        except OSError as error:
            self.close()
            raise HostError(f"cannot get memory for the policy: {error.strerror}") from None
        self.raw: Any = ffi.cast("struct kvmsr_block *", ffi.from_buffer(self._mapping))
        self.tables: Any = ffi.cast("struct kvmsr_tables *", ffi.from_buffer(self._tables_mapping))
        lib.kvmsr_block_make(self.raw, self.tables, max_vcpus)

    @classmethod
    def opened(cls, fd: int) -> Self:
        """Map the memory of another process's run, to read it. *fd* is its memory file."""
        block = cls.__new__(cls)
        block.fd, block.tables_fd = fd, -1
        block._mapping = mmap.mmap(fd, 0)
        block.raw = ffi.cast("struct kvmsr_block *", ffi.from_buffer(block._mapping))
        block.tables = None
        none, one = lib.kvmsr_block_size(0), lib.kvmsr_block_size(1)
        block.max_vcpus = (len(block._mapping) - none) // (one - none)
        return block

    def install(self, table: bytes) -> None:
        """
        Put *table* in force, even while guests run.

        :raises BrokenInvariantError: if *table* is not valid, or cannot be replaced.
        """
        data = ffi.from_buffer(table)
        wrong = lib.kvmsr_install(self.tables, self.raw, data, len(table))
        if wrong:
            raise BrokenInvariantError(f"the compiled policy: {ffi.string(wrong).decode()}")

    def take_vm(self) -> int:
        """Return the number of a new VM of this process."""
        number = int(lib.kvmsr_take_vm(self.raw, b"kvmsr"))
        if number >= lib.KVMSR_MAX_VMS:
            raise BrokenInvariantError("there are more VMs than records")
        return number

    def new_cpu(self, vm: int, vcpu: int) -> Any:
        """Return a new ``struct kvmsr_cpu *`` for a vCPU of a VM, with a record of its own."""
        record = lib.kvmsr_take_vcpu(self.raw, self.max_vcpus, vm, vcpu)
        if not record:
            raise BrokenInvariantError("there are more vCPUs than records")
        cpu = ffi.new("struct kvmsr_cpu *")
        cpu.tables, cpu.block, cpu.vm, cpu.shared = self.tables, self.raw, self.vm(vm), record
        return cpu

    def vm(self, number: int) -> Any:
        """Return the ``struct kvmsr_vm`` with a number."""
        return lib.kvmsr_vm_at(self.raw, number)

    def vcpu(self, number: int) -> Any:
        """Return the ``struct kvmsr_vcpu`` with a number below :attr:`n_vcpus`."""
        return lib.kvmsr_vcpu_at(self.raw, number)

    @property
    def n_vcpus(self) -> int:
        """Return the number of vCPU records that have been used."""
        return min(int(self.raw.n_vcpus), self.max_vcpus)

    def vms(self) -> Iterator[tuple[int, Any]]:
        """Yield the numbers and records of all VMs, including those that are gone."""
        for number in range(min(self.raw.n_vms, lib.KVMSR_MAX_VMS)):
            record = lib.kvmsr_vm_at(self.raw, number)
            if record.taken:
                yield number, record

    def vcpus(self) -> Iterator[Any]:
        """Yield the records of all vCPUs, including those that are gone, in order of creation."""
        for number in range(self.n_vcpus):
            record = self.vcpu(number)
            if record.taken:
                yield record

    def close(self) -> None:
        """Close the memory files. Do not use :attr:`raw`, or anything got from it, after that."""
        for fd in (self.fd, self.tables_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.tables_fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _memory(size: int, seals: int) -> tuple[int, mmap.mmap]:
    """Return a sealed memory file, and a mapping of it that may be written."""
    fd = os.memfd_create("kvmsr", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        mapping = mmap.mmap(fd, size)
        fcntl.fcntl(fd, _F_ADD_SEALS, _FIXED | seals)
    except OSError:
        os.close(fd)
        raise
    return fd, mapping
