# SPDX-License-Identifier: Apache-2.0
"""
Virtio over PCI
---------------

The modern transport. Source: virtio 1.2, section 4.1, and 2.1 to 2.4 for status and features.
"""

import struct
from collections.abc import Callable
from typing import Final, Protocol

from kvmsr.machine.board.msix import NO_VECTOR, Msix
from kvmsr.machine.board.msix import SIZE as MSIX_SIZE
from kvmsr.machine.board.pci import Bar, Function, Identity
from kvmsr.machine.board.virtio.device import VirtioDevice
from kvmsr.machine.board.virtio.queue import GuestMemory, Queue, QueueError

__all__ = ("Host", "VirtioPci")

_VENDOR: Final = 0x1AF4
_FIRST_DEVICE: Final = 0x1040
_VERSION_1: Final = 1 << 32

_VENDOR_SPECIFIC: Final = 0x09
_STRUCTURES_BAR, _MSIX_BAR = 0, 1
_SIZE: Final = 0x1000
_COMMON, _ISR, _DEVICE, _NOTIFY = 0x000, 0x400, 0x800, 0xC00
_PART: Final = 0x400
_COMMON_SIZE: Final = 56
_NOTIFY_MULTIPLIER: Final = 4
_COMMON_TYPE, _NOTIFY_TYPE, _ISR_TYPE, _DEVICE_TYPE, _CONFIG_ACCESS_TYPE = range(1, 6)

_DRIVER_OK: Final = 4
_FEATURES_OK: Final = 8
_NEEDS_RESET: Final = 64
_ISR_QUEUE, _ISR_CONFIG = 1, 2


class Host(GuestMemory, Protocol):
    """What the transport needs of the VM; :class:`kvmsr.kvm.Vm` has it."""

    def signal_msi(self, address: int, data: int) -> int:
        """Send a message-signalled interrupt."""


class VirtioPci(Function):
    """
    A virtio device as a PCI function.

    :param device: the device.
    :param host: guest memory, and where messages go.
    :param note: called with a line the first time the driver breaks a queue.
    """

    def __init__(self, device: VirtioDevice, host: Host, note: Callable[[str], None]) -> None:
        self._device = device
        self._host = host
        self._note: Callable[[str], None] | None = note
        self._msix = msix = Msix(1 + len(device.queues), host.signal_msi)
        number = _FIRST_DEVICE + device.number
        super().__init__(
            Identity(_VENDOR, number, device.class_code, 1, _VENDOR, number),
            [
                Bar(_STRUCTURES_BAR, _SIZE, _Locked(device, self._read, self._write)),
                Bar(_MSIX_BAR, MSIX_SIZE, _Locked(device, msix.read, msix.write)),
            ],
            pin=1,
        )
        self._add_structures()
        msix.add_to(self, _MSIX_BAR)
        self.watch(self._config_changed)
        self._offered = device.features | _VERSION_1
        self._isr = 0
        self._reset()
        device.has_news = self._serve

    def _add_structures(self) -> None:
        for kind, offset, size in (
            (_COMMON_TYPE, _COMMON, _COMMON_SIZE),
            (_ISR_TYPE, _ISR, 1),
            (_DEVICE_TYPE, _DEVICE, len(self._device.config)),
        ):
            self._add_structure(kind, offset, size)
        size = _NOTIFY_MULTIPLIER * len(self._device.queues)
        self._add_structure(_NOTIFY_TYPE, _NOTIFY, size, struct.pack("<I", _NOTIFY_MULTIPLIER))
        # Where and how much, and then the data themselves: the guest's to choose.
        window = b"\0\0\xff\0\0\0" + b"\xff" * 12
        self._window = self._add_structure(_CONFIG_ACCESS_TYPE, 0, 0, bytes(4), window)

    def _add_structure(
        self, kind: int, offset: int, size: int, more: bytes = b"", writable: bytes = b""
    ) -> int:
        body = struct.pack("<BBBBHII", 16 + len(more), kind, _STRUCTURES_BAR, 0, 0, offset, size)
        return self.add_capability(_VENDOR_SPECIFIC, body + more, writable)

    def _reset(self) -> None:
        self._status = 0
        self._device_select = self._driver_select = self._queue_select = 0
        self._accepted = 0
        self._config_vector = NO_VECTOR
        self._queue_vectors = [NO_VECTOR] * len(self._device.queues)
        for queue in self._device.queues:
            queue.reset()
        self._set_isr(0)

    # Configuration space

    def read_config(self, offset: int, size: int) -> int:
        """Return what the guest reads there; the window's data are a register's."""
        found = self._in_window() if offset == self._window + 16 else None
        if found is not None and found[2] == size:
            device, at, _ = found
            mask = (1 << 8 * size) - 1
            self.set(offset, size, device.read(at, size) & mask, writable=mask)
        return super().read_config(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write there; what is written to the window's data goes to a register, too."""
        super().write_config(offset, size, value)
        found = self._in_window() if offset == self._window + 16 else None
        if found is not None and found[2] == size:
            found[0].write(found[1], size, value)

    def _in_window(self) -> "tuple[_Locked, int, int] | None":
        """Return to which BAR, offset and size the window is set, if it is valid."""
        bar = self.get(self._window + 4, 1)
        at, size = self.get(self._window + 8, 4), self.get(self._window + 12, 4)
        for one in self.bars:
            if one.number == bar and size in (1, 2, 4) and at % size == 0 and at + size <= one.size:
                assert isinstance(one.device, _Locked)
                return one.device, at, size
        return None

    def _config_changed(self) -> None:
        with self._device.lock:
            self._msix.deliver()
            self._set_isr(self._isr)

    # Registers

    def _read(self, address: int, size: int) -> int:
        part, offset = address & -_PART, address % _PART
        if part == _COMMON:
            return _cut(self._common(), offset, size)
        if part == _DEVICE:
            return _cut(self._device.config, offset, size)
        if address == _ISR:
            isr = self._isr
            self._set_isr(0)
            return isr
        return 0

    def _common(self) -> bytes:
        selected = self._queue_select < len(self._device.queues)
        queue = self._device.queues[self._queue_select] if selected else Queue(0, 0)
        vector = self._queue_vectors[self._queue_select] if selected else NO_VECTOR
        return struct.pack(
            "<IIIIHHBBHHHHHQQQ",
            self._device_select, _half(self._offered, self._device_select),
            self._driver_select, _half(self._accepted, self._driver_select),
            self._config_vector, len(self._device.queues),
            self._status, 0, self._queue_select,
            queue.size, vector, queue.enabled, self._queue_select if selected else 0,
            queue.descriptors, queue.driver, queue.device,
        )  # fmt: skip

    def _write(self, address: int, size: int, value: int) -> None:
        part, offset = address & -_PART, address % _PART
        if part == _NOTIFY:
            if offset % _NOTIFY_MULTIPLIER == 0:
                self._serve(offset // _NOTIFY_MULTIPLIER)
        elif part == _COMMON:
            if size == 8:  # the driver may write the addresses like that
                self._write_common(offset, 4, value & 0xFFFFFFFF)
                self._write_common(offset + 4, 4, value >> 32)
            else:
                self._write_common(offset, size, value)

    def _write_common(self, offset: int, size: int, value: int) -> None:
        if (offset, size) in _GENERAL:
            _GENERAL[offset, size](self, value)
        elif self._queue_select < len(self._device.queues) and (offset, size) in _OF_A_QUEUE:
            queue = self._device.queues[self._queue_select]
            if not queue.enabled or offset == 26:
                _OF_A_QUEUE[offset, size](self, queue, value)

    def _select_device(self, value: int) -> None:
        self._device_select = value

    def _select_driver(self, value: int) -> None:
        self._driver_select = value

    def _select_queue(self, value: int) -> None:
        self._queue_select = value

    def _accept(self, value: int) -> None:
        if not self._status & _FEATURES_OK and self._driver_select < 2:
            shift = 32 * self._driver_select
            self._accepted = self._accepted & ~(0xFFFFFFFF << shift) | value << shift

    def _set_config_vector(self, value: int) -> None:
        self._config_vector = self._vector(value)

    def _vector(self, value: int) -> int:
        return value if value < self._msix.vectors else NO_VECTOR

    def _set_status(self, value: int) -> None:
        if not value:
            self._reset()
            return
        if value & _FEATURES_OK & ~self._status:
            unknown = self._accepted & ~self._offered
            if unknown or not self._accepted & _VERSION_1:
                value &= ~_FEATURES_OK
        begins = value & _DRIVER_OK & ~self._status
        self._status |= value
        if begins:  # buffers may be there already
            for number in range(len(self._device.queues)):
                self._serve(number)

    def _set_queue_size(self, queue: Queue, value: int) -> None:
        queue.size = value

    def _set_queue_vector(self, queue: Queue, value: int) -> None:
        self._queue_vectors[self._queue_select] = self._vector(value)

    def _enable_queue(self, queue: Queue, value: int) -> None:
        if value != 1:
            return
        try:
            queue.enable(self._host)
        except QueueError as error:
            self._break(self._queue_select, error)

    # Queues

    def _serve(self, number: int) -> None:
        queues = self._device.queues
        ready = self._status & (_DRIVER_OK | _NEEDS_RESET) == _DRIVER_OK
        if not ready or number >= len(queues) or not queues[number].enabled:
            return
        queue = queues[number]
        before = queue.given
        try:
            self._device.serve(number, queue, self._accepted)
        except QueueError as error:
            self._break(number, error)
        if queue.given != before and queue.wants_interrupt:
            self._interrupt(self._queue_vectors[number], _ISR_QUEUE)

    def _break(self, number: int, error: QueueError) -> None:
        """Stop, tell the driver so, and tell people, once."""
        self._status |= _NEEDS_RESET
        if self._status & _DRIVER_OK:
            self._interrupt(self._config_vector, _ISR_CONFIG)
        note, self._note = self._note, None
        if note is not None:
            name = self._device.name
            note(f"the guest broke queue {number} of {name}, which needs a reset: {error}")

    def _interrupt(self, vector: int, cause: int) -> None:
        if self._msix.enabled:
            self._msix.interrupt(vector)
        else:
            self._set_isr(self._isr | cause)

    def _set_isr(self, value: int) -> None:
        self._isr = value
        self.set_intx(bool(value) and not self._msix.enabled)


class _Locked:
    """Registers that are used with the device's lock held."""

    def __init__(
        self,
        device: VirtioDevice,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
    ) -> None:
        self._lock, self._read, self._write = device.lock, read, write

    def read(self, address: int, size: int) -> int:
        with self._lock:
            return self._read(address, size)

    def write(self, address: int, size: int, value: int) -> None:
        with self._lock:
            self._write(address, size, value)


def _cut(data: bytes, offset: int, size: int) -> int:
    return int.from_bytes(data[offset : offset + size], "little")


def _half(features: int, select: int) -> int:
    return features >> 32 * select & 0xFFFFFFFF if select < 2 else 0


def _put_half(name: str, shift: int) -> Callable[[VirtioPci, Queue, int], None]:
    def put(_: VirtioPci, queue: Queue, value: int) -> None:
        kept = getattr(queue, name) & ~(0xFFFFFFFF << shift)
        setattr(queue, name, kept | value << shift)

    return put


# What the driver may write, by offset and size.
_GENERAL: Final[dict[tuple[int, int], Callable[[VirtioPci, int], None]]] = {
    (0, 4): VirtioPci._select_device,
    (8, 4): VirtioPci._select_driver,
    (12, 4): VirtioPci._accept,
    (16, 2): VirtioPci._set_config_vector,
    (20, 1): VirtioPci._set_status,
    (22, 2): VirtioPci._select_queue,
}
_OF_A_QUEUE: Final[dict[tuple[int, int], Callable[[VirtioPci, Queue, int], None]]] = {
    (24, 2): VirtioPci._set_queue_size,
    (26, 2): VirtioPci._set_queue_vector,
    (28, 2): VirtioPci._enable_queue,
    (32, 4): _put_half("descriptors", 0),
    (36, 4): _put_half("descriptors", 32),
    (40, 4): _put_half("driver", 0),
    (44, 4): _put_half("driver", 32),
    (48, 4): _put_half("device", 0),
    (52, 4): _put_half("device", 32),
}
