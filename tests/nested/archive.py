# SPDX-License-Identifier: Apache-2.0
"""
Archive
-------

What the nested machine boots with: an initial RAM file system in cpio's "newc" format
(Documentation/driver-api/early-userspace/buffer-format.rst of Linux).
"""

import stat
from pathlib import Path

__all__ = ("Archive",)


class Archive:
    """Files, each at its absolute path, with the folders above it."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._folders: set[Path] = {Path("/")}
        self._count = 0

    def add(self, path: Path, data: bytes, *, executable: bool = False, mtime: int = 0) -> None:
        """Add a file of *data* as *path*."""
        self._add_folder(path.parent)
        self._entry(path, stat.S_IFREG | (0o755 if executable else 0o644), data, mtime)

    def copy(self, source: Path, path: Path | None = None) -> None:
        """Add the contents of file *source*, as *path* if it is not to be at the same place."""
        about = source.stat()
        executable = bool(about.st_mode & 0o100)
        self.add(
            path or source, source.read_bytes(), executable=executable, mtime=int(about.st_mtime)
        )

    def device(self, path: Path, major: int, minor: int) -> None:
        """Add a character device as *path*."""
        self._add_folder(path.parent)
        self._entry(path, stat.S_IFCHR | 0o600, b"", 0, (major, minor))

    def finish(self) -> bytes:
        """Return the archive."""
        self._entry(Path("/TRAILER!!!"), 0, b"", 0)
        return b"".join(self._parts)

    def _add_folder(self, path: Path) -> None:
        if path not in self._folders:
            self._add_folder(path.parent)
            self._folders.add(path)
            self._entry(path, stat.S_IFDIR | 0o755, b"", 0)

    def _entry(
        self, path: Path, mode: int, data: bytes, mtime: int, device: tuple[int, int] = (0, 0)
    ) -> None:
        name = bytes(path)[1:] + b"\0"
        self._count += 1
        # inode, mode, uid, gid, links, mtime, size, device (2), special device (2), name, checksum
        fields = (self._count, mode, 0, 0, 1, mtime, len(data), 0, 0, *device, len(name), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._parts += _padded(header + name), _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
