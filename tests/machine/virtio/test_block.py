"""virtio-blk, and the images behind it."""

import errno
import os
import struct
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.errors import ImageError
from kvmsr.machine.board.virtio import Disk, DiskImage, VirtioBlock
from tests.machine.virtio.driver import NEEDS_RESET, VERSION_1, WRITE, Driver

SECTORS = 16
CONTENT = b"".join(struct.pack("<Q", n) * 64 for n in range(SECTORS))
IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8
OK, IOERR, UNSUPP = 0, 1, 2
DEVICE = 4


class Disks:
    """Drivers of disks, whose files are closed at the end."""

    def __init__(self, folder):
        self.path = folder / "disk"
        self.path.write_bytes(CONTENT)
        self.opened = []

    def open(self, write=False, **options):
        self.opened.append(DiskImage(Disk(self.path, write=write)))
        self.notes = []
        driver = Driver(VirtioBlock(self.opened[-1], "serial", note=self.notes.append, **options))
        driver.begin()
        return driver

    def close(self):
        for image in self.opened:
            image.close()


@pytest.fixture
def disks(tmp_path):
    made = Disks(tmp_path)
    yield made
    made.close()


def request(driver, kind, sector=0, data=b"", room=0):
    """Do a request, and return its status and what was read."""
    head = driver.buffer(16, struct.pack("<IIQ", kind, 0, sector))
    parts = [(head, 16, 0)]
    if data:
        parts.append((driver.buffer(len(data), data), len(data), 0))
    place = driver.buffer(room + 1)
    if room:
        parts.append((place, room, WRITE))
    parts.append((place + room, 1, WRITE))
    driver.offer(0, *parts)
    driver.notify(0)
    return driver.host.bytes[place + room], bytes(driver.host.memory_at(place, room))


def test_its_configuration(disks):
    driver = disks.open()
    assert driver.config(0) == 0x10421AF4
    assert driver.read(DEVICE, 0, 8) == SECTORS
    assert driver.read(DEVICE, 12, 4) == 126
    assert driver.read(DEVICE, 20, 4) == 512
    assert driver.offered() & 1 << 5
    disks.close()
    assert not disks.open(write=True).offered() & 1 << 5


def test_reading(disks):
    driver = disks.open()
    assert request(driver, IN, 3, room=1024) == (OK, CONTENT[1536:2560])
    index, head, length = driver.used(0)
    assert (index, head, length) == (1, 0, 1025)
    assert request(driver, IN, 0, room=len(CONTENT)) == (OK, CONTENT)
    assert request(driver, GET_ID, room=20) == (OK, b"serial".ljust(20, b"\0"))
    assert request(driver, GET_ID, room=19)[0] == IOERR
    assert request(driver, FLUSH)[0] == OK
    assert request(driver, 11, room=512)[0] == UNSUPP


@pytest.mark.parametrize(
    "sector, room", [(16, 512), (15, 1024), ((1 << 64) - 1, 512), (1 << 55, 512), (0, 100)]
)
def test_nothing_is_read_beyond_the_end_or_in_part(disks, sector, room):
    driver = disks.open()
    assert request(driver, IN, sector, room=room) == (IOERR, b"\xcc" * room)


def test_a_read_only_disk_refuses_writes(disks):
    driver = disks.open()
    assert request(driver, OUT, 0, b"x" * 512)[0] == IOERR
    assert disks.path.read_bytes() == CONTENT


def test_what_is_written_is_in_the_file(disks):
    driver = disks.open(write=True)
    assert request(driver, OUT, 2, b"x" * 1024)[0] == OK
    assert driver.used(0)[2] == 1
    assert request(driver, OUT, 15, b"y" * 1024)[0] == IOERR
    assert request(driver, OUT, 2, b"y" * 100)[0] == IOERR
    assert disks.path.read_bytes() == CONTENT[:1024] + b"x" * 1024 + CONTENT[2048:]


@pytest.mark.parametrize("flushes", [True, False])
def test_flush_is_fdatasync_and_without_it_each_write_is(disks, monkeypatch, flushes):
    synced = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    driver = disks.open(write=True)
    driver.begin(driver.offered() if flushes else VERSION_1)
    request(driver, OUT, 2, b"x" * 512)
    assert len(synced) == (0 if flushes else 1)
    assert request(driver, FLUSH)[0] == OK
    assert len(synced) == (1 if flushes else 2)


def test_an_error_of_the_file_is_the_guests_and_told_once(disks, monkeypatch):
    driver = disks.open(write=True)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwritev", full)
    for _ in range(3):
        assert request(driver, OUT, 0, b"x" * 512)[0] == IOERR
    assert request(driver, IN, 0, room=512)[0] == OK
    (note,) = disks.notes
    assert "No space left on device" in note
    assert str(disks.path) in note


def test_a_file_that_becomes_shorter(disks):
    driver = disks.open()
    os.truncate(disks.path, 512)
    assert request(driver, IN, 0, room=512)[0] == OK
    assert request(driver, IN, 0, room=1024)[0] == IOERR
    assert "shorter" in disks.notes[0]


def test_when_the_run_is_over_nothing_more_is_done(disks):
    over = []
    driver = disks.open(over=lambda: bool(over))
    over.append(1)
    assert request(driver, IN, room=512) == (0xCC, b"\xcc" * 512)


def test_what_a_device_writes_is_told(disks):
    driver = disks.open()
    request(driver, IN, room=512)
    ((address, length), (status, one)) = driver.host.written
    assert (length, one, status) == (512, 1, address + 512)


@pytest.mark.parametrize("parts", [[(16, 0)], [(15, 0), (1, WRITE)], [(513, WRITE)]])
def test_requests_without_header_or_status_break_the_queue(disks, parts):
    driver = disks.open()
    driver.offer(0, *((driver.buffer(size), size, flags) for size, flags in parts))
    driver.notify(0)
    assert driver.status & NEEDS_RESET
    assert "without header or status" in driver.notes[0]


def cuts(total):
    return st.lists(st.integers(0, total), max_size=2).map(lambda at: [0, *sorted(at), total])


@given(cuts(16 + 1024), cuts(1025), st.integers(0, SECTORS - 2), st.booleans())
def test_requests_may_be_cut_anywhere(tmp_path_factory, first, second, sector, write):
    """The header, the data and the status need not be buffers of their own (2.7.4.1)."""
    disks = Disks(tmp_path_factory.mktemp("disk"))
    driver = disks.open(write=write)
    data = os.urandom(1024)
    read = driver.buffer(16 + 1024, struct.pack("<IIQ", write, 0, sector) + data)
    written = driver.buffer(1025)
    if not write:
        first = [min(at, 16) for at in first]
    else:
        second = [0, 1]
    parts = [(read + a, b - a, 0) for a, b in pairwise(first)]
    parts += [(written + a, b - a, WRITE) for a, b in pairwise(second)]
    driver.offer(0, *parts)
    driver.notify(0)
    expected = bytearray(CONTENT)
    if write:
        expected[512 * sector : 512 * sector + 1024] = data
        assert driver.host.bytes[written] == OK
    else:
        assert driver.host.memory_at(written, 1025) == CONTENT[512 * sector :][:1024] + b"\0"
    assert disks.path.read_bytes() == expected
    disks.close()


# Images


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "image"
    path.write_bytes(bytes(1024))
    return path


def refused(path, write=False):
    with pytest.raises(ImageError) as caught:
        DiskImage(Disk(path, write=write))
    message = str(caught.value)
    assert message.startswith(f"disk {path} ")
    assert "\n" not in message
    return message


def test_images_that_cannot_be(image, tmp_path):
    assert "cannot be opened: No such file" in refused(tmp_path / "none")
    assert "cannot be opened: No such file" in refused(tmp_path / "none", write=True)
    assert "neither a file nor a block device" in refused(tmp_path)
    assert "neither a file nor a block device" in refused("/dev/null", write=True)
    os.truncate(image, 1000)
    assert "1,000 bytes, not a whole number of 512-byte sectors: `truncate" in refused(image)
    os.truncate(image, 0)
    assert "is empty" in refused(image)


def test_an_image_that_may_not_be_written():
    """Nobody may write to a program that runs, not even root."""
    assert "cannot be written: " in refused(os.path.realpath(sys.executable), write=True)


def test_a_fifo_does_not_hold_the_machine_up(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    assert "neither a file nor" in refused(tmp_path / "fifo")


def test_many_read_or_one_writes(image):
    readers = [DiskImage(Disk(image)), DiskImage(Disk(str(image)))]
    assert "is locked: somebody uses it" in refused(image, write=True)
    for reader in readers:
        reader.close()
        reader.close()
    writer = DiskImage(Disk(image, write=True))
    assert "is locked: somebody writes to it" in refused(image)
    assert "is locked" in refused(image, write=True)
    writer.close()
    DiskImage(Disk(image)).close()
