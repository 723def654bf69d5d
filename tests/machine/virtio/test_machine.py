"""Disks and consoles of a machine."""

import pytest

from kvmsr.errors import ImageError, UsageError
from kvmsr.machine import Boot, Disk, Machine
from kvmsr.machine.board.virtio import DiskImage, VirtioConsole

BASE = 0xFEBFF000  # where the first BAR of the first device is put


@pytest.fixture
def image(tmp_path):
    (tmp_path / "disk").write_bytes(bytes(4096))
    (tmp_path / "guest").write_bytes(b"\xb0\x00\xe6\xf4")
    return tmp_path / "disk"


def test_disks_are_open_as_long_as_the_machine(image):
    with Machine("soft", memory="4M", disks=[str(image), Disk(image)]) as machine:
        slots = [machine.board.pci.function(slot) for slot in (2, 3)]
        assert [one.read_config(0, 4) for one in slots] == [0x10421AF4] * 2
        assert machine.board.pci.function(4) is None
        with pytest.raises(ImageError, match="is locked"):
            DiskImage(Disk(image, write=True))
    DiskImage(Disk(image, write=True)).close()


def test_a_machine_that_cannot_be_built_leaves_no_lock(image, tmp_path):
    with pytest.raises(ImageError, match=r"disk .*none cannot be opened: No such file"):
        Machine("soft", memory="4M", disks=[Disk(image, write=True), tmp_path / "none"])
    with pytest.raises(ImageError, match="is locked"):
        Machine("soft", memory="4M", disks=[image, Disk(image, write=True)])
    DiskImage(Disk(image, write=True)).close()


def test_the_bus_has_30_slots_for_devices(image):
    with Machine("soft", memory="4M", disks=[image] * 30):
        pass
    with pytest.raises(UsageError, match="too many devices: the PCI bus has 30 slots for them"):
        Machine("soft", memory="4M", disks=[image] * 30, console="virtio")


def test_the_line_is_where_input_goes():
    with Machine("soft", memory="4M") as machine:
        assert machine.board.line is machine.board.uart
    with Machine("soft", memory="4M", console="virtio") as machine:
        assert isinstance(machine.board.line, VirtioConsole)


def test_a_broken_queue_is_a_note_in_the_result(any_backend, image, tmp_path):
    with Machine(any_backend, memory="4M", disks=[image]) as machine:
        machine.load(Boot(tmp_path / "guest", mode=16))
        registers = machine.board.pci.memory
        for offset, size, value in ((32, 4, 1), (28, 2, 1), (20, 1, 0), (32, 4, 2), (28, 2, 1)):
            registers.write(BASE + offset, size, value)
        result = machine.run(timeout=20)
    (note,) = [note for note in result.notes if "queue" in note]
    assert note == (
        f"the guest broke queue 0 of disk {image}, which needs a reset: a ring at 0x1, which is"
        " not aligned"
    )
