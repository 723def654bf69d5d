# SPDX-License-Identifier: Apache-2.0
"""
The soft backend in a VMM
-------------------------

Where the soft backend is to be a VMM's KVM, it runs in the VMM's process: the CPU works on the
guest's memory, which is the VMM's. A library that is preloaded behind the shim has an interpreter
there, for which it needs Python's shared library, in the version of the Python that runs here.
"""

import os
import platform
import sys
import sysconfig
from pathlib import Path
from typing import Final

from kvmsr import native
from kvmsr.errors import BackendError

__all__ = ("SoftKvm", "find_python")

_VERSION: Final = f"{sys.version_info.major}.{sys.version_info.minor}"
_NAME: Final = f"libpython{_VERSION}.so.1.0"
_LIBRARY: Final = "KVMSR_LIBPYTHON"
_MOST_BYTES: Final = 1 << 16


def find_python() -> Path:
    """
    Return the path of Python's shared library, which KVMSR_LIBPYTHON may name.

    :raises BackendError: if it is not there, or the library that needs it was not built.
    """
    if not (native.available() and native.SOFT.exists()):
        raise BackendError(native.why_not() or f"{native.SOFT} is missing: {native.REMEDY}")
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{platform.machine()}-linux-gnu"
    named = os.environ.get(_LIBRARY)
    if named is not None:
        if not Path(named).is_file():
            raise BackendError(f"{_LIBRARY}={named}: there is no such file; name {_NAME}")
        return Path(named).absolute()
    folders = [
        sysconfig.get_config_var("LIBDIR") or "", f"{sys.base_prefix}/lib", f"/usr/lib/{multiarch}",
        f"/lib/{multiarch}", "/usr/lib64", "/usr/lib", "/usr/local/lib",
    ]  # fmt: skip
    for folder in filter(None, folders):
        path = Path(folder, _NAME)
        if path.exists():
            return path
    raise BackendError(
        f"{_NAME} is missing, which the soft backend needs in a VMM: install it (on Debian:"
        f" libpython{_VERSION})"
    )


class SoftKvm:
    """
    What a VMM's process needs, and what comes from there.

    :param profile: the kernel that is modelled.
    :param why: why it is soft, if the user has not asked for it.
    :raises BackendError: as :func:`find_python`.
    """

    def __init__(self, profile: str, why: str = "") -> None:
        self._library = find_python()
        self._profile = profile
        self._why = [f"on the soft backend: {why}"] if why else []
        self._fd = os.memfd_create("kvmsr-notes", os.MFD_CLOEXEC)

    def environment(self) -> dict[str, str]:
        """
        Return what the library reads.

        A line each for Python's library, its program, its version, the file for notes, the profile,
        and the folders in which Python finds its modules.
        """
        notes = f"/proc/{os.getpid()}/fd/{self._fd}"
        paths = [path for path in sys.path if path and "\n" not in path]
        lines = (str(self._library), sys.executable, _VERSION, notes, self._profile, *paths)
        return {"KVMSR_SOFT": "\n".join(lines)}

    def notes(self) -> list[str]:
        """Return what the user should know."""
        text = os.pread(self._fd, _MOST_BYTES, 0).decode(errors="replace")
        lines = ("".join(filter(str.isprintable, line)) for line in text.split("\n"))
        return [*self._why, *dict.fromkeys(filter(None, lines))]

    def close(self) -> None:
        """Forget them."""
        os.close(self._fd)
