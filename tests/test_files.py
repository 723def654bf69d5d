"""Files that users name: only regular ones are read, and no more of them than makes sense."""

import os
import socket
from pathlib import Path

import pytest

from kvmsr.files import read_regular


def test_a_file_is_read_up_to_its_limit(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_regular(file, 5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, and the limit is 4"):
        read_regular(file, 4)
    (tmp_path / "link").symlink_to(file)
    assert read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nope", 5)


def test_what_is_no_file_is_not_even_opened(tmp_path):
    fifo, name = tmp_path / "fifo", tmp_path / "socket"
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(name))
        for path, kind in (
            (fifo, "a FIFO"),
            (name, "a socket"),
            (tmp_path, "a directory"),
            (Path("/dev/zero"), "a device"),
        ):
            with pytest.raises(OSError, match=f"it is {kind}, not a regular file"):
                read_regular(path, 5)


def test_a_file_that_lies_about_its_size_is_read_up_to_the_limit():
    with pytest.raises(OSError, match="the limit is 8"):
        read_regular(Path("/proc/self/status"), 8)
