"""Queues that a hostile guest fills: nothing is raised, touched or kept that should not be."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmsr.machine.board.virtio import Disk, DiskImage, VirtioBlock, VirtioConsole
from kvmsr.machine.board.virtio.device import VirtioDevice
from kvmsr.machine.board.virtio.queue import Queue
from tests.machine.virtio.driver import NEEDS_RESET, NEXT, SIZE, WRITE, Driver

INDIRECT = 4
SECTORS = 64


class Echo(VirtioDevice):
    """Takes each chain, and fills its writable parts."""

    name, number, class_code = "echo", 63, 0xFF0000

    def __init__(self):
        super().__init__(0, bytes(4), (Queue(8, 1 << 20),))
        self.read = []

    def serve(self, number, queue, features):
        while (chain := queue.pop()) is not None:
            self.read.append(b"".join(chain.readable))
            for part in chain.writable:
                part[:] = b"\xee" * len(part)
            queue.push(chain, sum(map(len, chain.writable)))


@pytest.fixture
def driver():
    made = Driver(Echo())
    made.begin()
    return made


def test_chains_go_round_and_round(driver):
    driver.offer(0, (0x100000, 4, 0), (0x110000, 8, WRITE), (0x110010, 0, WRITE), first=2)
    driver.notify(0)
    for number in range(2, 65_600):  # past the end of the 16-bit indices
        driver.make_available(0, 2)
        driver.notify(0)
        assert driver.used(0) == (number & 0xFFFF, 2, 8)
    assert len(driver.device.read) == 65_599


BROKEN = {
    "no descriptor of that number": (lambda d: d.make_available(0, 8), "descriptor 8 in"),
    "a link to nowhere": (
        lambda d: (d.describe(0, 0, 0x100000, 4, NEXT, 9), d.make_available(0, 0)),
        "descriptor 9 in",
    ),
    "a circle": (
        lambda d: (
            d.describe(0, 0, 0x100000, 4, NEXT, 1),
            d.describe(0, 1, 0x100000, 4, NEXT, 0),
            d.make_available(0, 0),
        ),
        "a circle",
    ),
    "indirect": (lambda d: d.offer(0, (0x100000, 16, INDIRECT)), "indirect"),
    "read after write": (
        lambda d: d.offer(0, (0x100000, 4, WRITE), (0x100000, 4, 0)),
        "to read behind one to write",
    ),
    "beyond memory": (lambda d: d.offer(0, (SIZE - 2, 4, 0)), "not in memory"),
    "around the end of addresses": (lambda d: d.offer(0, ((1 << 64) - 4, 8, 0)), "not in memory"),
    "too long": (lambda d: d.offer(0, *[(0, 1 << 19, 0)] * 3), "more than 1,048,576 bytes"),
    "too many": (
        lambda d: d.host.bytes.__setitem__(slice(0x11002, 0x11004), b"\x09\0"),
        "9 available chains in a queue of 8",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_rules_that_a_driver_breaks(driver, how):
    do, why = BROKEN[how]
    do(driver)
    driver.notify(0)
    assert driver.status & NEEDS_RESET
    (note,) = driver.notes
    assert why in note
    assert driver.device.read == []
    assert driver.used(0)[0] == 0


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("hostile") / "disk"
    path.write_bytes(bytes(512 * SECTORS))
    opened = DiskImage(Disk(path, write=True))
    yield opened
    opened.close()


ADDRESSES = st.sampled_from([0, 0x10000, 0x11000, 0x12000, 0x100000, SIZE - 16, SIZE, 1 << 63])
LENGTHS = st.sampled_from([0, 1, 15, 16, 20, 512, 513, 1024, 0x10000, SIZE, (1 << 32) - 1])
DESCRIPTORS = st.tuples(
    ADDRESSES | st.integers(0, (1 << 64) - 1), LENGTHS | st.integers(0, (1 << 32) - 1),
    st.integers(0, 7) | st.integers(0, 0xFFFF), st.integers(0, 9) | st.integers(0, 0xFFFF),
)  # fmt: skip
HEADS = st.lists(st.integers(0, 8) | st.integers(0, 0xFFFF), max_size=8)
REQUESTS = st.tuples(st.integers(0, 16), st.integers(0, SECTORS) | st.integers(0, (1 << 64) - 1))


@settings(max_examples=300)
@given(
    st.lists(DESCRIPTORS, min_size=8, max_size=8), HEADS, st.integers(0, 9), REQUESTS,
    st.sampled_from(["disk", "console"]), st.integers(0, 1),
)  # fmt: skip
def test_no_ring_upsets_a_device(image, descriptors, heads, index, asked, kind, number):
    if kind == "disk":
        device, number = VirtioBlock(image, "serial", note=lambda what: None), 0
    else:
        device = VirtioConsole(lambda data: None)
    driver = Driver(device)
    driver.begin()
    if kind == "console":
        device.receive(b"input" * 1000)
    table, _ = driver.tables[number]
    memory = driver.host.bytes
    memory[0x100000:0x100010] = struct.pack("<IIQ", asked[0], 0, asked[1])
    for slot, descriptor in enumerate(descriptors):
        driver.describe(number, slot, *descriptor)
    for slot, head in enumerate(heads):
        struct.pack_into("<H", memory, table + 0x1004 + 2 * slot, head)
    struct.pack_into("<H", memory, table + 0x1002, index)
    before = bytes(memory)
    driver.notify(number)
    # All that it may write: what the descriptors offer for that, and the used ring.
    allowed = bytearray(len(memory))
    for address, length, flags, _ in descriptors:
        if flags & WRITE and address < SIZE:
            length = min(length, SIZE - address)
            allowed[address : address + length] = b"\1" * length
    allowed[table + 0x2002 : table + 0x2004 + 64] = b"\1" * 66
    changed = [at for at in _differences(before, memory) if not allowed[at]]
    assert changed == []
    assert len(driver.notes) <= 1
    assert bool(driver.notes) == bool(driver.status & NEEDS_RESET)
    assert driver.used(number)[0] <= 8
    driver.begin()  # and it is as new
    assert not driver.status & NEEDS_RESET


def _differences(before, after):
    """Return where two byte strings differ, page by page."""
    for page in range(0, len(before), 4096):
        if before[page : page + 4096] != after[page : page + 4096]:
            yield from (n for n in range(page, page + 4096) if before[n] != after[n])


REGISTERS = st.lists(
    st.tuples(
        st.booleans(), st.integers(0, 0x1FFF), st.sampled_from([1, 2, 4, 8]),
        st.integers(0, 2) | st.sampled_from([0x10000, 0x0F, 0x07]) | st.integers(0, (1 << 64) - 1),
    ),
    max_size=40,
)  # fmt: skip


@given(REGISTERS)
def test_no_sequence_of_accesses_upsets_a_function(accesses):
    """All of both BARs, and configuration space by the same numbers."""
    device = VirtioConsole(lambda data: None)
    driver = Driver(device)
    bases = driver.config(0x10) & ~0xF, driver.config(0x14) & ~0xF
    for is_write, offset, size, value in accesses:
        value &= (1 << 8 * size) - 1
        address = bases[offset >> 12] + (offset & 0xFFF)
        if is_write:
            driver.bus.memory.write(address, size, value)
            if size <= 4 and offset % size == 0:
                driver.function.write_config(offset & 0xFC, size, value)
                driver.bus.assign()
        else:
            driver.bus.memory.read(address, size)
    device.receive(b"input")
    driver.function.write_config(4, 2, 6)
    driver.bus.assign()
    driver.begin()
