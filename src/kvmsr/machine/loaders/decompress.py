# SPDX-License-Identifier: Apache-2.0
"""
Decompression
-------------

The formats in which a bzImage may hold its kernel, told apart by their first bytes. What comes out
is limited: a few bytes can stand for terabytes.
"""

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Final

import lz4.block
import zstandard

from kvmsr.errors import ImageError

__all__ = ("decompress",)

_LZ4_BLOCK: Final = 8 << 20  # what a block of the legacy format holds at most
_ZSTD_WINDOW: Final = 1 << 27  # the kernel's build takes the largest window: zstd -22 --ultra


def decompress(data: bytes, limit: int) -> tuple[str, bytes]:
    """
    Return the format's name and the content.

    :param data: begins with the compressed stream; what follows its end is ignored.
    :param limit: the most bytes that make sense.
    :raises ImageError: if the format is not known, the stream is damaged, or it holds more.
    """
    for magic, name, expand in _FORMATS:
        if data.startswith(magic):
            try:
                content = expand(data, limit + 1)
            except Exception as error:  # each library has errors of its own
                raise ImageError(f"its {name} stream is damaged: {error}") from None
            if len(content) > limit:
                raise ImageError(f"its {name} stream holds more than {limit:,} bytes")
            return name, content
    raise ImageError(f"its compression is not known (it begins with {data[:6].hex(' ')})")


def _gzip(data: bytes, limit: int) -> bytes:
    return _whole(zlib.decompressobj(wbits=31), data, limit)


def _bzip2(data: bytes, limit: int) -> bytes:
    return _whole(bz2.BZ2Decompressor(), data, limit)


def _xz(data: bytes, limit: int) -> bytes:
    return _whole(lzma.LZMADecompressor(), data, limit)


def _whole(
    decompressor: "zlib._Decompress | bz2.BZ2Decompressor | lzma.LZMADecompressor",
    data: bytes,
    limit: int,
) -> bytes:
    content = decompressor.decompress(data, limit)
    if not decompressor.eof and len(content) < limit:
        raise ValueError("it ends too early")
    return content


def _zstd(data: bytes, limit: int) -> bytes:
    with zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(data) as stream:
        return stream.read(limit)


def _lz4(data: bytes, limit: int) -> bytes:
    content = bytearray()
    at = 4
    while len(data) - at > 4 and len(content) < limit:  # the last four bytes: the content's length
        (size,) = struct.unpack_from("<I", data, at)
        block = data[at + 4 : at + 4 + size]
        if len(block) < size:
            raise ValueError("it ends too early")
        content += lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK)
        at += 4 + size
    return bytes(content)


_FORMATS: Final[tuple[tuple[bytes, str, Callable[[bytes, int], bytes]], ...]] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"BZh", "bzip2", _bzip2),
    (b"\xfd7zXZ\0", "xz", _xz),
    (b"\x5d\0\0", "lzma", _xz),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
    (b"\x02\x21\x4c\x18", "LZ4", _lz4),
)
