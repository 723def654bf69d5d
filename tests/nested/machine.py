# SPDX-License-Identifier: Apache-2.0
"""
The nested machine, put together and run
----------------------------------------

Everything is in the initial RAM file system, so there is no disk, no driver but KVM itself, and
nothing to prepare or to keep. The machine has one CPU: with two, QEMU's emulation of code that is
patched while it runs hangs now and then.
"""

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.nested.archive import Archive
from tests.nested.parts import (
    ROOT,
    Kernel,
    find_kernel,
    find_qemu,
    pack_files,
    pack_project,
    pack_python,
)

__all__ = ("NestedError", "prepare", "run")

SECONDS: Final = 300
"""How long a run may take; a boot takes 5, and each MSR exit 0.1 ms."""
_INIT: Final = Path("/init")
_JOB: Final = Path("/job.json")
_COMMAND_LINE: Final = (
    "console=ttyS0 loglevel=4 panic=-1 mitigations=off nokaslr tsc=reliable random.trust_cpu=on"
)
_MACHINE: Final = (
    "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35",
    "-accel", "tcg", "-cpu", "max,la57=off", "-smp", "1", "-m", "1536",
)  # fmt: skip


class NestedError(Exception):
    """The machine did not do what it was to do; the message has the end of its console."""


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a run: exit status, output, and the console with all the rest."""

    status: int
    output: str
    console: str

    @property
    def console_end(self) -> str:
        """The last lines of the console."""
        return "\n".join(self.console.splitlines()[-30:])


def run(
    arguments: list[str],
    *,
    seconds: float = SECONDS,
    files: list[Path] | None = None,
    parameters: dict[str, str] | None = None,
) -> Done:
    """
    Run Python with *arguments* in the nested machine, in the project's folder.

    :param files: what is to be there besides Python, ``kvmsr`` and its tests.
    :param parameters: of KVM's modules, by the module's name.
    :raises MissingError: if a part of the machine is not here.
    :raises NestedError: if the machine does not come to its end.
    """
    with tempfile.TemporaryDirectory(prefix="nested-") as name:
        folder = Path(name)
        console, output = (folder / part for part in ("console", "output"))
        command = prepare(folder, arguments, parameters or {}, files)
        command += ["-serial", f"file:{console}", "-serial", f"file:{output}"]
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=seconds, check=False
            )
            errors = ended.stderr
        except subprocess.TimeoutExpired:
            errors = f"not at its end after {seconds} s"
        text, _, status = _read(output).rpartition("\n")
        done = Done(int(status or -1), text, _read(console))
    if not status:
        raise NestedError(f"{errors}\n{done.console_end}")
    return done


def prepare(
    folder: Path,
    arguments: list[str],
    parameters: dict[str, str],
    files: list[Path] | None = None,
) -> list[str]:
    """
    Put the machine together in *folder* and return the command that runs it, less its serial lines.

    :param parameters: of KVM's modules, by the module's name.
    """
    kernel, qemu = find_kernel(), find_qemu()
    archive, libraries = _pack(kernel, arguments, parameters, files or [])
    initrd = folder / "initrd"
    initrd.write_bytes(archive)
    # The kernel gives what it does not know of its command line to /init as environment.
    return [
        *qemu, *_MACHINE, "-kernel", str(kernel.image), "-initrd", str(initrd),
        "-append", f"{_COMMAND_LINE} LD_LIBRARY_PATH={libraries}",
    ]  # fmt: skip


def _pack(
    kernel: Kernel, arguments: list[str], parameters: dict[str, str], files: list[Path]
) -> tuple[bytes, str]:
    """Return all that is inside, and the path of shared libraries there."""
    archive = Archive()
    program, folders = pack_python(archive)
    folders += pack_files(archive, files)
    libraries = ":".join(dict.fromkeys(map(str, folders)))
    packages = pack_project(archive)
    modules = []
    for name, data in kernel.module_and_needs("kvm-amd").items():
        path = f"/modules/{name}.ko"
        modules.append((path, parameters.get(name, "")))
        archive.add(Path(path), data)
    job = {
        "arguments": arguments,
        "environment": {
            "HOME": "/", "LANG": "C.UTF-8", "LD_LIBRARY_PATH": libraries,
            "PYTHONPATH": ":".join(map(str, packages)),
        },
        "folder": str(ROOT),
        "modules": modules,
    }  # fmt: skip
    archive.add(_JOB, json.dumps(job).encode())
    init = Path(__file__).with_name("init.py").read_bytes()
    archive.add(_INIT, b"#!%s -I\n" % bytes(program) + init, executable=True)
    return archive.finish(), libraries


def _read(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.exists() else ""
