"""Small images of every kind, built byte by byte, and memory to load them into."""

import bz2
import gzip
import lzma
import struct

import lz4.block
import zstandard

from kvmsr.errors import UsageError
from kvmsr.machine.layout import Layout
from kvmsr.machine.loaders import Guest

RAM = 32 << 20


class Ram:
    """What loaders need of a VM: its memory."""

    def __init__(self, size=RAM):
        self.bytes = bytearray(size)

    def memory_at(self, address, length):
        if not 0 <= address <= address + length <= len(self.bytes):
            raise UsageError("no memory there")
        return memoryview(self.bytes)[address : address + length]

    def set_user_memory_region(self, slot, address, memory, flags=0):
        self.rom = (slot, address, bytes(memory.view))


def guest(size=RAM, rsdp=0xE0000):
    return Guest(Ram(size), Layout.of(size), rsdp)


def elf(bits=64, *, machine=62, kind=2, entry=0x1000000, segments=(), notes=b""):
    """Return an ELF file; each segment is (physical address, data, size in memory)."""
    head_size, ph_size = (64, 56) if bits == 64 else (52, 32)
    parts = [(1, address, data, size) for address, data, size in segments]
    if notes:
        parts.append((4, 0, notes, len(notes)))
    offset = head_size + ph_size * len(parts)
    headers, body = b"", b""
    for type_, address, data, size in parts:
        at = offset + len(body)
        if bits == 64:
            headers += struct.pack("<IIQQQQQQ", type_, 7, at, address, address, len(data), size, 4)
        else:
            headers += struct.pack("<IIIIIIII", type_, at, address, address, len(data), size, 7, 4)
        body += data
    ident = b"\x7fELF" + bytes((2 if bits == 64 else 1, 1, 1)) + bytes(9)
    form = "<HHIQQQIHHHHHH" if bits == 64 else "<HHIIIIIHHHHHH"
    head = struct.pack(
        form, kind, machine, 1, entry, head_size, 0, 0, head_size, ph_size, len(parts), 0, 0, 0
    )
    return ident + head + headers + body


def note(owner, kind, content):
    name = owner.encode() + b"\0"
    return (
        struct.pack("<III", len(name), len(content), kind)
        + name.ljust((len(name) + 3) & ~3, b"\0")
        + content.ljust((len(content) + 3) & ~3, b"\0")
    )


def pvh_elf(entry=0x1000200, size=8):
    content = struct.pack("<Q", entry)[:size]
    return elf(segments=[(0x1000000, b"kernel", 0x100)], notes=note("Xen", 18, content))


def multiboot_header(flags=0, *addresses):
    magic = 0x1BADB002
    return struct.pack(
        f"<III{len(addresses)}I", magic, flags, -(magic + flags) & 0xFFFFFFFF, *addresses
    )


def multiboot_elf(bits=32, address=0x100000):
    data = multiboot_header() + b"code"
    return elf(bits, machine=3, entry=address, segments=[(address, data, len(data) + 64)])


def lz4_legacy(data):
    block = lz4.block.compress(data, store_size=False)
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block


COMPRESSORS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zstd": zstandard.compress,
    "LZ4": lz4_legacy,
}


def bzimage(
    vmlinux=None, *, compress="gzip", version=0x020F, xloadflags=1, payload=None, relocatable=1,
    loadflags=1,
):  # fmt: skip
    """Return a bzImage with a setup of one sector and the payload at offset 0x300 behind it."""
    vmlinux = vmlinux or elf(segments=[(0x1000000, b"\x90\xf4", 0x1000)])
    if payload is None:
        payload = COMPRESSORS[compress](vmlinux)
        if compress != "gzip":  # Linux' build appends the size; gzip has it itself
            payload += struct.pack("<I", len(vmlinux))
    setup = bytearray(2 * 512)
    setup[0x1F1] = 1
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x200:0x202] = b"\xeb\x6a"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    setup[0x211] = loadflags
    struct.pack_into("<I", setup, 0x214, 0x100000)
    struct.pack_into("<I", setup, 0x22C, 0x7FFFFFFF)
    setup[0x234] = relocatable
    struct.pack_into("<H", setup, 0x236, xloadflags)
    struct.pack_into("<I", setup, 0x238, 2047)
    struct.pack_into("<II", setup, 0x248, 0x300, len(payload))
    struct.pack_into("<Q", setup, 0x258, 0x1000000)
    struct.pack_into("<I", setup, 0x260, 0x100000)
    return bytes(setup) + bytes(0x300) + payload
