"""What firmware is handed by fw_cfg, to start it."""

import struct

import pytest

from kvmsr.errors import ImageError, UsageError
from kvmsr.machine import Boot
from kvmsr.machine.layout import Layout
from kvmsr.machine.loaders import hand_over
from tests.machine import images


class Items:
    """What loaders need of fw_cfg."""

    def __init__(self):
        self.items, self.files = {}, {}

    def add_item(self, key, data):
        self.items[key] = data

    def add_file(self, name, data):
        self.files[name] = data

    def number(self, key):
        (value,) = struct.unpack("<I", self.items[key])
        return value


@pytest.fixture
def handed(tmp_path):
    """Return a function that hands over an image, and returns the items."""

    def hand(data, *, append="", initrd=(), rom=b"\x55\xaa"):
        for name, content in (("image", data), ("rom.bin", rom)):
            (tmp_path / name).write_bytes(content)
        items = Items()
        option_rom = tmp_path / "rom.bin" if rom else None
        boot = Boot(
            tmp_path / "image", append, initrd, bios=tmp_path / "b", option_rom=option_rom
        )  # fmt: skip
        hand_over(items, Layout.of(images.RAM), boot)
        return items

    return hand


@pytest.mark.parametrize(
    ("loadflags", "setup_at", "line_at", "kernel_at"),
    [(1, 0x10000, 0x20000, 0x100000), (0, 0x90000, 0x98000, 0x10000)],
)
def test_an_image_its_command_line_and_an_initial_ram_disk(
    handed, tmp_path, loadflags, setup_at, line_at, kernel_at
):
    (tmp_path / "initrd").write_bytes(b"disk" * 1000)
    data = images.bzimage(loadflags=loadflags)
    items = handed(data, append="console=ttyS0", initrd=tmp_path / "initrd")
    assert (items.number(0x16), items.number(0x13), items.number(0x07)) == (
        setup_at, line_at, kernel_at,
    )  # fmt: skip
    assert items.items[0x15] == b"console=ttyS0\0"
    assert items.items[0x11] == data[1024:]
    assert items.items[0x12] == b"disk" * 1000
    for size, content in ((0x08, 0x11), (0x0B, 0x12), (0x14, 0x15), (0x17, 0x18)):
        assert items.number(size) == len(items.items[content])
    setup = items.items[0x18]
    assert len(setup) == 1024
    assert setup[0x202:0x206] == b"HdrS"
    assert setup[0x210] == 0xFF
    assert setup[0x211] == loadflags | 0x80
    assert struct.unpack_from("<H", setup, 0x224)[0] == line_at - setup_at - 0x200
    assert struct.unpack_from("<I", setup, 0x228)[0] == line_at
    address = items.number(0x0A)
    assert struct.unpack_from("<II", setup, 0x218) == (address, 4000)
    assert address % 4096 == 0
    assert address + 4000 <= images.RAM - (1 << 20)  # firmware keeps its tables there


def test_an_option_rom_is_what_is_booted(handed):
    items = handed(images.bzimage())
    assert items.files == {
        "genroms/rom.bin": b"\x55\xaa",
        "bootorder": b"/rom@genroms/rom.bin\n\0",
    }
    assert handed(images.bzimage(), rom=b"").files == {}


def test_what_firmware_cannot_be_handed_is_refused(handed, tmp_path):
    with pytest.raises(ImageError, match="does not have Linux's setup header"):
        handed(images.multiboot_elf())
    with pytest.raises(ImageError, match="takes 2,047"):
        handed(images.bzimage(), append="x" * 2048)
    with pytest.raises(ImageError, match=r"option ROM .* does not fit"):
        handed(images.bzimage(), rom=bytes(1 << 18))
    with pytest.raises(UsageError, match="only multiboot"):
        handed(images.bzimage(), initrd=(tmp_path / "a", tmp_path / "b"))
