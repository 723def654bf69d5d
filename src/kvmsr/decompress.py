# SPDX-License-Identifier: Apache-2.0
"""
Decompression
-------------

The formats in which a bzImage may hold its kernel, distinguished by their first bytes. The size of
the result is limited: a few bytes can expand to terabytes.
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

__all__ = ("UnknownFormatError", "decompress")

_LZ4_BLOCK: Final = 8 << 20  # the largest block of the legacy format
_ZSTD_WINDOW: Final = 1 << 27  # the kernel's build uses the largest: zstd -22 --ultra


class UnknownFormatError(ImageError):
    """The compression format is unknown."""


def decompress(data: bytes, limit: int) -> tuple[str, bytes]:
    """
    Return the name of the format and the contents.

    :param data: bytes that begin with a compressed stream; what follows the stream is ignored.
    :param limit: the largest size that makes sense, in bytes.
    :raises ImageError: if the format is unknown, or the stream is damaged or larger than *limit*.
    """
    for magic, name, expand in _FORMATS:
        if data.startswith(magic):
            try:
                content = expand(data, limit + 1)
            except Exception as error:  # each library has its own errors
                raise ImageError(f"its {name} stream is damaged: {error}") from None
            if len(content) > limit:
                raise ImageError(f"its {name} stream expands to more than {limit:,} bytes")
            return name, content
    raise UnknownFormatError(
        f"its compression format is unknown (it begins with {data[:6].hex(' ')})"
    )


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
        raise ValueError("unexpected end")
    return content


def _zstd(data: bytes, limit: int) -> bytes:
    with zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(data) as stream:
        return stream.read(limit)


def _lz4(data: bytes, limit: int) -> bytes:
    content = bytearray()
    at = 4
    while len(data) - at > 4 and len(content) < limit:  # the last four bytes are the length
        (size,) = struct.unpack_from("<I", data, at)
        block = data[at + 4 : at + 4 + size]
        if len(block) < size:
            raise ValueError("unexpected end")
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
