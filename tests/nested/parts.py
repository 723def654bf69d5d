# SPDX-License-Identifier: Apache-2.0
"""
Parts of the nested machine
---------------------------

Where its kernel, its KVM modules, QEMU and Python come from: the peers that
``tools/fetch_peers.py`` fetched, or this system.
"""

import lzma
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

import lazy_loader

import kvmsr
from tests.nested.archive import Archive

__all__ = (
    "Kernel",
    "MissingError",
    "find_kernel",
    "find_qemu",
    "pack_files",
    "pack_project",
    "pack_python",
    "project_files",
)

ROOT: Final = Path(__file__).parent.parent.parent
PEERS: Final = Path(os.environ.get("KVMSR_PEERS", ROOT / ".peers"))

# Of the standard library: big, and of no use to a test.
_UNUSED: Final = {
    "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages", "dist-packages", "test",
    "tests", "tkinter", "turtledemo",
}  # fmt: skip
_UNUSED_EXTENSIONS: Final = ("_test", "_tkinter", "_xx", "xx", "_ctypes_test")
# What kvmsr needs for machines of its own.
_ONLY_OF_MACHINES: Final = ("unicorn", "capstone", "zstandard", "lz4")


class MissingError(Exception):
    """A part is not here; the message names it."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """
    A stock kernel.

    :ivar image: its bzImage.
    :ivar modules: its modules' folder, ``/lib/modules/VERSION/kernel`` or the like.
    """

    image: Path
    modules: Path

    def module(self, name: str) -> tuple[list[str], bytes]:
        """Return which modules *name* depends on, and its contents."""
        spellings = {name.replace("_", "-"), name.replace("-", "_")}
        for spelling in spellings:
            for path in self.modules.rglob(f"{spelling}.ko*"):
                data = _decompressed(path)
                needs = re.search(rb"\0depends=([^\0]*)\0", data)
                return [n for n in needs[1].decode().split(",") if n] if needs else [], data
        return [], b""  # it is a part of the kernel itself

    def module_and_needs(
        self, name: str, known: dict[str, bytes] | None = None
    ) -> dict[str, bytes]:
        """Return *name* and all that it depends on, in the order to load them in."""
        known = {} if known is None else known
        needs, data = self.module(name)
        for need in needs:
            if need not in known:
                self.module_and_needs(need, known)
        if data:
            known[name] = data
        return known


def _decompressed(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def find_kernel() -> Kernel:
    """
    Return the fetched kernel, or the newest that is installed.

    :raises MissingError: if there is none with kvm_amd.
    """
    for root in (PEERS / "kernel", Path("/")):
        found = [
            Kernel(image, modules)
            for image in root.glob("boot/vmlinuz-*")
            for lib in ("lib", "usr/lib")
            for modules in [root / lib / "modules" / image.name[len("vmlinuz-") :] / "kernel"]
            if os.access(image, os.R_OK) and any(modules.rglob("kvm-amd.ko*"))
        ]
        if found:
            return max(found, key=lambda kernel: _version(kernel.image.name))
    raise MissingError("a kernel with kvm_amd, which tools/fetch_peers.py fetches")


def _version(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]


def find_qemu() -> list[str]:
    """
    Return the command that starts QEMU: the system's, or the fetched one with its libraries.

    :raises MissingError: if there is none.
    """
    system = shutil.which("qemu-system-x86_64")
    if system:
        return [system]
    root = PEERS / "qemu"
    binary = root / "usr/bin/qemu-system-x86_64"
    if not binary.exists():
        raise MissingError("qemu-system-x86_64, which tools/fetch_peers.py fetches")
    libraries = sorted({str(path.parent) for path in root.glob("**/*.so.*")})
    data = [option for name in ("qemu", "seabios") for option in ("-L", root / "usr/share" / name)]
    return ["env", f"LD_LIBRARY_PATH={':'.join(libraries)}", str(binary), *map(str, data)]


def pack_project(archive: Archive) -> list[Path]:
    """
    Add ``kvmsr`` as it is installed, what it cannot be imported without, and its tests.

    :returns: the folders in which Python is to look for packages.
    """
    packages = [Path(path) for module in (kvmsr, lazy_loader) for path in module.__path__]
    for folder in (*packages, ROOT / "tests"):
        _pack_folder(archive, folder, unused=())
    return [folder.parent for folder in packages]


def project_files() -> list[Path]:
    """Return all files of ``kvmsr`` and of what ``kvmsr exec`` needs."""
    known: dict[str, Distribution] = {}
    waiting = ["kvmsr"]
    while waiting:
        name = re.split(r"[^\w.-]", waiting.pop())[0].lower()
        if name in known or name in _ONLY_OF_MACHINES:
            continue
        known[name] = distribution(name)
        waiting += [need for need in known[name].requires or () if "extra ==" not in need]
    paths = {Path(str(d.locate_file(file))) for d in known.values() for file in d.files or ()}
    paths |= set(Path(kvmsr.__file__).parent.rglob("*"))  # after make dev they are in no list
    return sorted(path for path in paths if path.is_file() and "bin" not in path.parts[-2:])


def pack_files(archive: Archive, files: list[Path]) -> list[Path]:
    """
    Add files as they are, and the shared libraries of those that are programs or libraries.

    :returns: the folders of the libraries.
    """
    programs = []
    for file in files:
        archive.copy(file)
        with file.open("rb") as stream:
            if stream.read(4) == b"\x7fELF":
                programs.append(file)
    libraries = set(_libraries(programs)) - set(files)
    # The C library loads this one when a thread is ended.
    libraries |= set(Path("/lib").glob("*-linux-gnu/libgcc_s.so.1"))
    for library in sorted(libraries):
        archive.copy(library)
    return sorted({library.parent for library in libraries})


def pack_python(archive: Archive) -> tuple[Path, list[Path]]:
    """
    Add the Python that runs this, and its standard library.

    :returns: its program, and the folders of its shared libraries.
    """
    program = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    archive.copy(program)
    paths = sysconfig.get_paths(vars=_base_prefixes())
    for folder in {Path(paths["stdlib"]), Path(paths["platstdlib"])}:
        _pack_folder(archive, folder, unused=_UNUSED)
    extensions = [
        path
        for path in Path(paths["platstdlib"], "lib-dynload").glob("*.so")
        if not path.name.startswith(_UNUSED_EXTENSIONS)
    ]
    for extension in extensions:
        archive.copy(extension)
    libraries = _libraries([program, *extensions])
    for library in libraries:
        archive.copy(library)
    return program, sorted({library.parent for library in libraries})


def _base_prefixes() -> dict[str, str]:
    """Return the variables that lead out of a virtual environment."""
    return {
        "base": sys.base_prefix, "platbase": sys.base_exec_prefix,
        "installed_base": sys.base_prefix, "installed_platbase": sys.base_exec_prefix,
    }  # fmt: skip


def _pack_folder(archive: Archive, folder: Path, unused: "set[str] | tuple[()]") -> None:
    for path in sorted(folder.iterdir()):
        if path.name in unused:
            continue
        if path.is_dir():
            _pack_folder(archive, path, unused)
        elif path.suffix in (".py", ".pyi") or (path.suffix == ".pyc" and ".opt-" not in path.name):
            # Compiled files go with their sources, whose times they name: compiling takes long.
            archive.copy(path)


def _libraries(programs: list[Path]) -> list[Path]:
    """Return the shared libraries of *programs* and the program that loads them."""
    if not shutil.which("ldd"):
        raise MissingError("ldd, which names the libraries to take along")
    done = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False)
    found = re.findall(r"^\s+(?:\S+ => )?(/\S+) \(0x", done.stdout, re.MULTILINE)
    return [Path(path) for path in sorted(set(found))]
