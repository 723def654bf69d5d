# SPDX-License-Identifier: Apache-2.0
"""
ELF images
----------

The segments and notes of an ELF file, parsed by pyelftools and checked before use.
"""

import io
from dataclasses import dataclass
from typing import Any

from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from kvmsr.errors import ImageError
from kvmsr.machine.loaders.common import Guest

__all__ = ("Elf", "Segment")

_MAX_SEGMENTS = 256
_X86 = ("EM_386", "EM_X86_64")


@dataclass(frozen=True, slots=True)
class Segment:
    """What to load: *data* at the physical *address*, followed by zeros up to *size* bytes."""

    address: int
    data: memoryview
    size: int


class Elf:
    """
    An ELF executable for x86.

    :param what: what the file is, for messages.
    :ivar bits: 32 or 64.
    :ivar entry: the entry point.
    :ivar segments: what to load.
    :raises ImageError: if it is not an ELF executable for x86, or damaged.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        try:
            self._file: Any = ELFFile(io.BytesIO(data))
            machine, kind = self._file["e_machine"], self._file["e_type"]
            self.bits: int = self._file.elfclass
            self.entry: int = self._file["e_entry"]
            count = self._file.num_segments()
            if count > _MAX_SEGMENTS:
                raise ImageError(f"{what}: too many ELF segments: {count}")
            found = list(self._file.iter_segments()) if count else []
            self.segments = [self._segment(s) for s in found if s["p_type"] == "PT_LOAD"]
            self._notes = [s for s in found if isinstance(s, NoteSegment)]
        except ImageError:
            raise
        except Exception as error:  # pyelftools raises whatever its parts raise
            raise ImageError(f"{what}: a damaged ELF file ({type(error).__name__}: {error})") from (
                None
            )
        if machine not in _X86:
            raise ImageError(f"{what}: the ELF file is for {machine}, not for x86")
        if kind not in ("ET_EXEC", "ET_DYN"):
            raise ImageError(f"{what}: the ELF file is of type {kind}, not an executable")
        if not self.segments:
            raise ImageError(f"{what}: the ELF file has nothing to load")

    def _segment(self, segment: Any) -> Segment:
        offset, size = segment["p_offset"], segment["p_filesz"]
        data = memoryview(self._data)[offset : offset + size]
        if len(data) < size:
            raise ImageError(
                f"{self._what}: truncated: an ELF segment extends past the end of the file"
            )
        return Segment(segment["p_paddr"], data, max(segment["p_memsz"], size))

    def note(self, owner: str, kind: int) -> bytes | None:
        """Return the contents of a note, or None if there is no such note."""
        try:
            for segment in self._notes:
                note: Any
                for note in segment.iter_notes():
                    if note["n_name"] == owner and note["n_type"] == kind:
                        return bytes(note["n_descdata"])
        except Exception as error:
            message = f"{self._what}: damaged ELF notes ({type(error).__name__}: {error})"
            raise ImageError(message) from None
        return None

    def load(self, guest: Guest) -> list[tuple[int, int]]:
        """Load all segments, and return the start and end of each."""
        for segment in self.segments:
            room = guest.room(segment.address, segment.size, self._what)
            room[: len(segment.data)] = segment.data
            room[len(segment.data) :] = bytes(segment.size - len(segment.data))
        return [(segment.address, segment.address + segment.size) for segment in self.segments]
