"""Loaders: what ends up where, and one clear line for what cannot be loaded."""

import gzip
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvmsr.decompress import decompress
from kvmsr.errors import ImageError, KvmsrError, UsageError
from kvmsr.machine import Boot
from kvmsr.machine.cpustate import Mode
from kvmsr.machine.layout import BOOT_PARAMS, COMMAND_LINE, INFO
from kvmsr.machine.loaders import load
from tests.conftest import GUESTS
from tests.machine import images


def load_bytes(tmp_path, data, guest=None, **options):
    """Load *data* as a file; return what the loader said, and the memory."""
    file = tmp_path / "image"
    file.write_bytes(data)
    guest = guest or images.guest()
    return load(guest, Boot(file, **options)), guest.vm.bytes


def u32(memory, address):
    return struct.unpack_from("<I", memory, address)[0]


def u64(memory, address):
    return struct.unpack_from("<Q", memory, address)[0]


# Flat binaries


@pytest.mark.parametrize(("mode", "address"), [(16, 0x7C00), (32, 0x100000), (64, 0x100000)])
def test_a_flat_binary(tmp_path, mode, address):
    loaded, memory = load_bytes(tmp_path, b"\x90\xf4", mode=mode)
    assert memory[address : address + 2] == b"\x90\xf4"
    assert (loaded.start.mode, loaded.start.rip) == (mode, address)


# Multiboot


@pytest.mark.parametrize("bits", [32, 64])
def test_a_multiboot_elf(tmp_path, bits):
    loaded, memory = load_bytes(tmp_path, images.multiboot_elf(bits), append="a b")
    start = loaded.start
    assert loaded.kind == f"multiboot, ELF{bits}"
    assert (start.mode, start.rip) == (Mode.PROTECTED, 0x100000)
    assert start.registers == {"rax": 0x2BADB002, "rbx": INFO}
    assert not start.gdt
    flags = u32(memory, INFO)
    assert flags & 0x45 == 0x45
    assert u32(memory, INFO + 4) == 639
    assert u32(memory, INFO + 8) == (images.RAM >> 10) - 1024
    line = u32(memory, INFO + 16)
    assert memory[line : line + 200].split(b"\0")[0].endswith(b"image a b")
    length, table = struct.unpack_from("<II", memory, INFO + 44)
    entries = [struct.unpack_from("<IQQI", memory, table + at) for at in range(0, length, 24)]
    assert (20, 0x100000, images.RAM - 0x100000, 1) in entries


def test_a_multiboot_image_that_says_where_it_goes(tmp_path):
    code = b"\xf4" * 32
    header = images.multiboot_header(1 << 16, 0x200000, 0x200000, 0, 0x201000, 0x200020)
    guest = images.guest()
    guest.vm.bytes[0x200500] = 0xFF  # must be cleared: it is bss
    loaded, memory = load_bytes(tmp_path, header + code, guest)
    assert memory[0x200000:0x200020] == header
    assert memory[0x200500] == 0
    assert loaded.start.rip == 0x200020


def test_an_image_may_be_compressed(tmp_path):
    loaded, _ = load_bytes(tmp_path, gzip.compress(images.multiboot_elf()))
    assert loaded.kind == "multiboot, ELF32"
    bomb = gzip.compress(bytes(images.RAM + 1))
    with pytest.raises(ImageError, match=r"image .*: its gzip stream expands to more than"):
        load_bytes(tmp_path, bomb)


def test_multiboot_modules(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode() * 2000)
    loaded, memory = load_bytes(
        tmp_path, images.multiboot_elf(), initrd=(tmp_path / "one", tmp_path / "two")
    )
    info = loaded.start.registers["rbx"]
    count, table = struct.unpack_from("<II", memory, info + 20)
    assert count == 2
    for n, name in enumerate(("one", "two")):
        start, end, string, _ = struct.unpack_from("<4I", memory, table + 16 * n)
        assert start % 4096 == 0
        assert memory[start:end] == name.encode() * 2000
        assert memory[string : string + 200].split(b"\0")[0].endswith(name.encode())


def test_multiboot_information_keeps_clear_of_the_image(tmp_path):
    data = images.multiboot_header() + bytes(0x90000)
    image = images.elf(32, machine=3, entry=0x8000, segments=[(0x8000, data, len(data))])
    loaded, memory = load_bytes(tmp_path, image)
    info = loaded.start.registers["rbx"]
    assert info >= 0x8000 + len(data)
    assert memory[0x8000 : 0x8000 + len(data)] == data


# Linux


@pytest.mark.parametrize("compress", images.COMPRESSORS)
def test_a_bzimage_is_decompressed_here(tmp_path, compress):
    (tmp_path / "initrd").write_bytes(b"initrd" * 1000)
    loaded, memory = load_bytes(
        tmp_path,
        images.bzimage(compress=compress),
        append="console=ttyS0",
        initrd=(tmp_path / "initrd",),
    )
    start = loaded.start
    assert loaded.notes == ()
    assert compress in loaded.kind
    assert (start.mode, start.rip, start.registers["rsi"]) == (Mode.LONG, 0x1000000, BOOT_PARAMS)
    assert memory[0x1000000:0x1000003] == b"\x90\xf4\0"
    assert memory[COMMAND_LINE : COMMAND_LINE + 14] == b"console=ttyS0\0"
    assert u32(memory, BOOT_PARAMS + 0x228) == COMMAND_LINE
    assert memory[BOOT_PARAMS + 0x210] == 0xFF
    assert memory[BOOT_PARAMS + 0x202 : BOOT_PARAMS + 0x206] == b"HdrS"
    assert u64(memory, BOOT_PARAMS + 0x70) == 0xE0000
    image, size = struct.unpack_from("<II", memory, BOOT_PARAMS + 0x218)
    assert memory[image : image + size] == b"initrd" * 1000
    assert image % 4096 == 0
    entries = memory[BOOT_PARAMS + 0x1E8]
    table = [
        struct.unpack_from("<QQI", memory, BOOT_PARAMS + 0x2D0 + 20 * n) for n in range(entries)
    ]
    assert (0x100000, images.RAM - 0x100000, 1) in table


def test_a_kernel_in_an_unknown_format_decompresses_itself(tmp_path):
    data = images.bzimage(payload=b"\x89LZO" + bytes(0x1000))
    loaded, memory = load_bytes(tmp_path, data)
    assert loaded.start.rip == 0x1000000 + 0x200
    assert memory[0x1000000:0x1001000] == data[1024 : 1024 + 0x1000]
    assert "takes longer" in loaded.notes[0]


def test_a_32_bit_kernel_inside_starts_in_protected_mode(tmp_path):
    vmlinux = images.elf(32, machine=3, segments=[(0x1000000, b"\x90\xf4", 0x1000)])
    loaded, memory = load_bytes(tmp_path, images.bzimage(vmlinux, xloadflags=0))
    start = loaded.start
    assert (start.mode, start.rip, start.registers["rsi"], start.gdt) == (
        Mode.PROTECTED, 0x1000000, BOOT_PARAMS, True,
    )  # fmt: skip
    assert memory[0x1000000:0x1000002] == b"\x90\xf4"


@pytest.mark.parametrize(
    ("header", "mode", "address", "entry"),
    [
        ({"xloadflags": 1}, Mode.LONG, 0x1000000, 0x1000200),
        ({"xloadflags": 0}, Mode.PROTECTED, 0x1000000, 0x1000000),
        ({"xloadflags": 1, "relocatable": 0}, Mode.LONG, 0x100000, 0x100200),
        ({"xloadflags": 0, "relocatable": 0}, Mode.PROTECTED, 0x100000, 0x100000),
        ({"version": 0x0205}, Mode.PROTECTED, 0x100000, 0x100000),
    ],
)
def test_without_a_compressed_kernel_an_image_is_loaded_as_it_is(
    tmp_path, header, mode, address, entry
):
    """The fields that say more than that are of later versions of the header."""
    data = images.bzimage(payload=b"", **header) + b"\x90" * 0x100
    loaded, memory = load_bytes(tmp_path, data)
    assert (loaded.start.mode, loaded.start.rip, loaded.notes) == (mode, entry, ())
    assert memory[address : address + len(data) - 1024] == data[1024:]
    assert u32(memory, BOOT_PARAMS + 0x214) == address


# PVH


@pytest.mark.parametrize("size", [4, 8])
def test_an_elf_kernel_with_a_pvh_note(tmp_path, size):
    (tmp_path / "initrd").write_bytes(b"x" * 5000)
    loaded, memory = load_bytes(
        tmp_path, images.pvh_elf(size=size), append="quiet", initrd=(tmp_path / "initrd",)
    )
    start = loaded.start
    assert (start.mode, start.rip) == (Mode.PROTECTED, 0x1000200)
    info = start.registers["rbx"]
    magic, version, _, modules = struct.unpack_from("<4I", memory, info)
    assert (magic, version, modules) == (0x336EC578, 1, 1)
    modlist, line, rsdp, table = struct.unpack_from("<4Q", memory, info + 16)
    assert rsdp == 0xE0000
    assert memory[line : line + 6] == b"quiet\0"
    address, length = struct.unpack_from("<QQ", memory, modlist)
    assert memory[address : address + length] == b"x" * 5000
    assert struct.unpack_from("<QQI", memory, table) == (0, 0x9FC00, 1)


# Firmware


@pytest.mark.parametrize("kib", [64, 128, 256, 1024])
def test_firmware_ends_at_4_gib_and_shows_below_1_mib(tmp_path, kib):
    data = bytes((n >> 10) & 0xFF for n in range(kib << 10))
    (tmp_path / "bios").write_bytes(data)
    guest = images.guest()
    loaded = load(guest, Boot(bios=tmp_path / "bios"))
    assert loaded.start.mode is None
    assert guest.vm.rom == (2, (4 << 30) - len(data), data)
    shown = data[-(256 << 10) :]
    assert guest.vm.bytes[0x100000 - len(shown) : 0x100000] == shown


# What cannot be loaded


LONG = images.multiboot_elf()

WRONG = [
    (b"", {}, "is empty"),
    (b"hello, world", {}, "--mode 16, 32 or 64"),
    (b"x" * (images.RAM + 1), {"mode": 16}, "bytes of memory"),
    (bytes(0x90000 + images.RAM - 0x90000), {"mode": 32}, "does not fit"),
    (b"\x7fELF", {}, "damaged ELF"),
    (images.elf(machine=183, segments=[(0, b"x", 1)]), {}, "EM_AARCH64, not for x86"),
    (images.elf(kind=1, segments=[(0, b"x", 1)]), {}, "ET_REL, not an executable"),
    (images.elf(), {}, "nothing to load"),
    (images.elf(segments=[(0x100000, b"x", 1)]), {}, "neither a multiboot header nor a PVH"),
    (images.pvh_elf()[:-60], {}, "truncated|damaged"),
    (
        images.elf(segments=[(1 << 40, b"x", 1)], notes=images.note("Xen", 18, bytes(4))),
        {},
        "does not fit",
    ),
    (
        images.elf(segments=[(0, b"x", 1 << 62)], notes=images.note("Xen", 18, bytes(4))),
        {},
        "does not fit",
    ),
    (LONG[:-2], {}, "truncated|damaged"),
    (images.multiboot_header(4) + bytes(100), {}, "features 0x4"),
    (
        images.multiboot_header(1 << 16, 0x1000, 0x2000, 0, 0, 0),
        {},
        "before the beginning of the file",
    ),
    (images.multiboot_header(1 << 16, 0, 0, 0x9999, 0, 0), {}, "truncated"),
    (images.multiboot_header(1 << 16, 0, 0, 0, 0xFFFFFFF0, 0), {}, "does not fit"),
    (LONG, {"append": "x" * 5000}, "limit is 4,096"),
    (images.bzimage()[:0x210], {}, "within its setup header"),
    (images.bzimage()[:0x500], {}, "within its setup code"),
    (images.bzimage()[:-10], {}, "kernel is incomplete"),
    (images.bzimage(version=0x0201), {}, "boot protocol 2.01 is too old"),
    (images.bzimage(loadflags=0), {}, r"needs a BIOS: give SeaBIOS with --bios, .* --option-rom"),
    (images.bzimage(version=0x0204), {}, "starts in real mode and needs a BIOS"),
    (images.bzimage(version=0x0205), {"append": "x" * 256}, "takes 255"),
    (images.bzimage(payload=b"\x1f\x8b" + b"nonsense" * 9), {}, "gzip stream is damaged"),
    (images.bzimage(vmlinux=b"no ELF file"), {}, "the kernel inside: a damaged ELF"),
    (images.bzimage(vmlinux=bytes(images.RAM + 1)), {}, "expands to more than"),
    (images.bzimage(), {"append": "x" * 2048}, "takes 2,047"),
]


@pytest.mark.parametrize(("data", "options", "piece"), WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_loaded_is_reported_in_one_line(tmp_path, data, options, piece):
    with pytest.raises(ImageError, match=piece) as caught:
        load_bytes(tmp_path, data, **options)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value) or "command line" in str(caught.value)


def test_a_kernel_needs_room_to_start(tmp_path):
    with pytest.raises(ImageError, match=r"while it starts, does not fit.*--memory"):
        load_bytes(tmp_path, images.bzimage(), images.guest(16 << 20))


def test_an_initrd_needs_room(tmp_path):
    (tmp_path / "initrd").write_bytes(bytes(20 << 20))
    for data in (images.bzimage(), images.pvh_elf()):
        with pytest.raises(ImageError, match=r"does not fit.*--memory"):
            load_bytes(tmp_path, data, initrd=(tmp_path / "initrd",))


def test_an_image_for_firmware_is_not_loaded_here(tmp_path):
    for name in ("image", "rom", "bios"):
        (tmp_path / name).write_bytes(bytes(0x10000))
    image, bios = tmp_path / "image", tmp_path / "bios"
    offered = load(images.guest(), Boot(image, bios=bios))
    assert "SeaBIOS only with --option-rom" in offered.notes[0]
    assert load(images.guest(), Boot(image, bios=bios, option_rom=tmp_path / "rom")).notes == ()
    assert load(images.guest(), Boot(bios=bios)).notes == ()


def test_files_that_cannot_be_read_are_reported(tmp_path):
    guest = images.guest()
    with pytest.raises(ImageError, match=r"cannot read image .*nope: No such file"):
        load(guest, Boot(tmp_path / "nope"))
    with pytest.raises(ImageError, match="a directory, not a regular file"):
        load(guest, Boot(tmp_path))
    with pytest.raises(ImageError, match="a device, not a regular file"):
        load(guest, Boot("/dev/zero"))
    with pytest.raises(ImageError, match="cannot read initrd"):
        load_bytes(tmp_path, images.bzimage(), initrd=(tmp_path / "nope",))
    (tmp_path / "bios").write_bytes(b"x" * 100)
    with pytest.raises(ImageError, match="not a multiple of 64 KiB"):
        load(guest, Boot(bios=tmp_path / "bios"))


def test_what_does_not_go_together_is_refused(tmp_path):
    with pytest.raises(UsageError, match="only multiboot"):
        load_bytes(tmp_path, images.bzimage(), initrd=(tmp_path, tmp_path))


# Fuzzing: whatever a file holds, it is loaded or refused.


SEEDS = [
    images.multiboot_elf(32),
    images.multiboot_elf(64),
    images.multiboot_header(1 << 16, 0x200000, 0x200000, 0, 0x201000, 0x200020) + b"\xf4" * 64,
    images.pvh_elf(),
    gzip.compress(images.multiboot_elf()),
    *(images.bzimage(compress=name) for name in images.COMPRESSORS),
    (GUESTS / "list.elf").read_bytes(),
]


FUZZED = images.guest()


@st.composite
def damaged(draw):
    """Return an image with some bytes changed, or cut off somewhere."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    interesting = st.integers(0, len(data) - 1) | st.integers(0, min(len(data) - 1, 0x120))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(interesting | st.integers(min(0x1F0, len(data) - 1), min(len(data) - 1, 0x268)))
        value = draw(
            st.sampled_from([b"\0", b"\xff", b"\x7f", b"\x80"]) | st.binary(min_size=1, max_size=8)
        )
        data[at : at + len(value)] = value
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


@given(damaged() | st.binary(max_size=3000), st.sampled_from([None, None, None, 16, 32, 64]))
@example(b"\x7fELF\x02\x01\x01" + b"\xff" * 60, None)
@settings(max_examples=1500)
def test_any_file_is_loaded_or_refused(tmp_path_factory, data, mode):
    file = tmp_path_factory.getbasetemp() / "fuzzed"
    file.write_bytes(data)
    try:
        load(FUZZED, Boot(file, append="x", mode=mode))
    except KvmsrError as error:
        assert error.exit_status == 3
        assert "\n" not in str(error)


@given(st.sampled_from(sorted(images.COMPRESSORS)), st.binary(max_size=4000), st.data())
@settings(max_examples=300)
def test_any_stream_is_expanded_or_refused(name, content, data):
    stream = bytearray(images.COMPRESSORS[name](content))
    limit = data.draw(st.integers(0, 5000))
    for _ in range(data.draw(st.integers(0, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        _, got = decompress(bytes(stream), limit)
    except ImageError:
        return
    assert len(got) <= limit


@pytest.mark.parametrize("name", images.COMPRESSORS)
def test_a_stream_that_expands_to_more_than_fits_is_refused(name):
    stream = images.COMPRESSORS[name](bytes(7 << 20))
    with pytest.raises(ImageError, match="expands to more than"):
        decompress(stream, 1 << 20)
