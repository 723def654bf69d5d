"""
Tools in a guest
----------------

An initial RAM disk with the tools that people look at power and frequency with, as Debian packages
them, and the drivers that these go through.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import PEERS, need, peer
from tests.nested.archive import Archive
from tests.nested.parts import Kernel

TOOLS = ("turbostat", "rdmsr", "wrmsr", "cpupower", "x86info")
MODULES = ("msr", "cpuid", "rapl", "intel_rapl_common", "intel_rapl_msr", "acpi_cpufreq")

START = """#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox --install -s /bin
export PATH=/bin LD_LIBRARY_PATH=/lib
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
exec </dev/console >/dev/console 2>&1
for module in {modules}; do insmod /modules/$module.ko 2>/dev/null; done
run() {{ echo "=== $*"; "$@"; echo "--- $?"; }}
"""
END = "reboot -f\n"


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed, and the status that it ended with."""

    text: str
    status: int

    @property
    def table(self) -> list[dict[str, str]]:
        """Return the rows of the table that the text ends with, by its head: turbostat's form."""
        lines = [line.split("\t") for line in self.text.splitlines() if "\t" in line]
        return [dict(zip(lines[0], row, strict=False)) for row in lines[1:]]  # rows may be short


def tool(name: str) -> Path:
    """Return where a tool is, or skip the test by the name of what is missing."""
    return peer("tools", f"usr/*bin/{name}")


def perf() -> Path:
    """Return where perf is: the system's, or the fetched one; or skip the test."""
    system = shutil.which("perf")
    return Path(system) if system else peer("perf", "usr/bin/perf")


def ram_disk(image: Path, script: str, programs: Sequence[Path] = ()) -> bytes:
    """
    Return an initial RAM disk for the kernel *image* that runs *script*, and reboots.

    :param programs: programs to take along beside the tools.
    """
    archive = Archive()
    archive.copy(peer("busybox", "**/busybox"), Path("/bin/busybox"))
    everything = [*map(tool, TOOLS), *programs]
    for program in everything:
        archive.copy(program, Path("/bin") / program.name)
    for library in _libraries(everything):
        loader = library.name.startswith("ld-")  # programs name its whole path
        archive.copy(library, library if loader else Path("/lib") / library.name)
    modules: dict[str, bytes] = {}
    kernel = Kernel(image, image.parent.parent / "lib/modules")
    for name in MODULES:
        kernel.module_and_needs(name, modules)
    for name, data in modules.items():
        archive.add(Path(f"/modules/{name}.ko"), data)
    start = START.format(modules=" ".join(modules))
    archive.add(Path("/init"), (start + script + END).encode(), executable=True)
    return archive.finish()


def said(console: str) -> dict[str, Said]:
    """Return what each command that the script called with ``run`` printed, by command line."""
    parts = re.findall(r"^=== (.*)\n((?s:.*?))^--- (\d+)$", console, re.MULTILINE)
    return {command: Said(text, int(status)) for command, text, status in parts}


def _libraries(programs: list[Path]) -> list[Path]:
    folders = {str(path.parent) for name in ("tools", "perf") for path in _shared(PEERS / name)}
    done = subprocess.run(
        [need("ldd"), *programs],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"LD_LIBRARY_PATH": ":".join(sorted(folders))},
    )
    found = re.findall(r"^\s+(?:\S+ => )?(/\S+) \(0x", done.stdout, re.MULTILINE)
    return [Path(path) for path in sorted(set(found))]


def _shared(folder: Path) -> list[Path]:
    return list(folder.glob("**/*.so.*"))
