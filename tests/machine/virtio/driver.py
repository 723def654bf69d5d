"""A driver for virtio over PCI, as a guest would have it, over memory of a test's own."""

import struct

from kvmsr.machine.board.pci import PciBus
from kvmsr.machine.board.virtio import VirtioPci
from tests.machine.images import Ram

SIZE = 0x140000
NEXT, WRITE = 1, 2
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
VERSION_1 = 1 << 32


class Host(Ram):
    """What a device has of its VM; notes what it does."""

    def __init__(self):
        super().__init__(SIZE)
        self.messages, self.written = [], []

    def signal_msi(self, address, data):
        self.messages.append((address, data))
        return 1

    def memory_written(self, address, length):
        self.written.append((address, length))


class Driver:
    """The guest's side of a device; its rings and buffers lie where it says."""

    def __init__(self, device):
        self.device = device
        self.host, self.lines, self.notes = Host(), [], []
        self.bus = PciBus(lambda what: None, lambda line, level: self.lines.append((line, level)))
        self.function = VirtioPci(device, self.host, self.notes.append)
        self.bus.add_next(self.function)
        self.bus.assign()
        self.parts = self.find_parts()
        self.tables = {}
        self.next_buffer = 0x100000

    # Configuration space

    def config(self, offset, size=4):
        return self.function.read_config(offset, size)

    def capabilities(self):
        at = self.config(0x34, 1)
        while at:
            yield self.config(at, 1), at
            at = self.config(at + 1, 1)

    def find_parts(self):
        """Return where the structures lie in memory, by their type."""
        found = {}
        for kind, at in self.capabilities():
            if kind == 9:
                bar = self.config(0x10 + 4 * self.config(at + 4, 1)) & ~0xF
                found[self.config(at + 3, 1)] = bar + self.config(at + 8), self.config(at + 12)
        return found

    # Registers

    def read(self, part, offset, size):
        start, length = self.parts[part]
        assert offset + size <= length
        return self.bus.memory.read(start + offset, size)

    def write(self, part, offset, size, value):
        self.bus.memory.write(self.parts[part][0] + offset, size, value)

    @property
    def status(self):
        return self.read(1, 20, 1)

    @status.setter
    def status(self, value):
        self.write(1, 20, 1, value)

    def offered(self):
        features = 0
        for half in (0, 1):
            self.write(1, 0, 4, half)
            features |= self.read(1, 4, 4) << 32 * half
        return features

    def accept(self, features):
        for half in (0, 1):
            self.write(1, 8, 4, half)
            self.write(1, 12, 4, features >> 32 * half & 0xFFFFFFFF)

    def begin(self, features=None, size=8):
        """Do all that comes before the first request; the features are those that are offered."""
        self.status = 0
        self.status = ACKNOWLEDGE | DRIVER
        self.accept(self.offered() if features is None else features)
        self.status = ACKNOWLEDGE | DRIVER | FEATURES_OK
        assert self.status & FEATURES_OK
        for number in range(self.read(1, 18, 2)):
            self.set_up(number, size, 0x10000 * (number + 1))
        self.status = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK

    def set_up(self, number, size, at):
        """Give queue *number* its rings: descriptors, available and used, a page each."""
        self.write(1, 22, 2, number)
        self.write(1, 24, 2, size)
        self.host.bytes[at : at + 0x3000] = bytes(0x3000)
        for offset, address in ((32, at), (40, at + 0x1000), (48, at + 0x2000)):
            self.write(1, offset, 4, address & 0xFFFFFFFF)
            self.write(1, offset + 4, 4, address >> 32)
        self.write(1, 28, 2, 1)
        self.tables[number] = at, size

    # Queues

    def buffer(self, size, data=b""):
        """Return the address of *size* bytes that nobody has yet."""
        at = self.next_buffer
        self.next_buffer += size + 7
        self.host.bytes[at : at + size] = data.ljust(size, b"\xcc")
        return at

    def describe(self, number, index, address, length, flags=0, following=0):
        at = self.tables[number][0] + 16 * index
        struct.pack_into("<QIHH", self.host.bytes, at, address, length, flags, following)

    def offer(self, number, *parts, first=0):
        """Make a chain of (address, length, flags) available, from descriptor *first* on."""
        for index, (address, length, flags) in enumerate(parts, first):
            more = NEXT if index < first + len(parts) - 1 else 0
            self.describe(number, index, address, length, flags | more, index + 1)
        self.make_available(number, first)

    def make_available(self, number, head):
        at, size = self.tables[number]
        (index,) = struct.unpack_from("<H", self.host.bytes, at + 0x1002)
        struct.pack_into("<H", self.host.bytes, at + 0x1004 + 2 * (index % size), head)
        struct.pack_into("<H", self.host.bytes, at + 0x1002, index + 1 & 0xFFFF)

    def notify(self, number):
        self.write(2, 4 * number, 2, number)

    def used(self, number):
        """Return how many chains came back, and the last one's head and length."""
        at, size = self.tables[number]
        (index,) = struct.unpack_from("<H", self.host.bytes, at + 0x2002)
        last = (index - 1) % 65536 % size
        return index, *struct.unpack_from("<II", self.host.bytes, at + 0x2004 + 8 * last)

    # MSI-X

    def enable_msix(self, control=0x8000):
        (at,) = (at for kind, at in self.capabilities() if kind == 0x11)
        self.function.write_config(at + 2, 2, control)

    def vector(self, number, address, data, mask=0):
        base = self.config(0x14) & ~0xF
        for offset, value in ((0, address), (4, 0), (8, data), (12, mask)):
            self.bus.memory.write(base + 16 * number + offset, 4, value)
