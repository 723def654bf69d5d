#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Fetch the real programs that the tests and the demo run against: Debian's cloud kernel, SeaBIOS,
busybox and QEMU. Each comes as a Debian package and is unpacked into a folder of its own; nothing
is installed, nothing outside that folder is touched, and no rights are needed. What cannot be had
is named, and the tests that need it say so when they are skipped.

    tools/fetch_peers.py FOLDER [kernel] [seabios] [busybox] [qemu]
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

# For the machine of tests/nested: KVM, what it needs, and the driver of /dev/cpu/*/msr.
MODULES = [
    f"*lib/modules/*/kernel/{part}"
    for part in ("arch/x86/kvm/*", "virt/lib/*", "arch/x86/kernel/msr.ko*")
]
PEERS = {
    # name: (packages, what to unpack of them, what must be there afterwards)
    "kernel": (
        ["linux-image-cloud-amd64"],
        ["./boot", *MODULES],
        ["boot/vmlinuz-*", "**/kvm-amd.ko*"],
    ),
    "seabios": (["seabios"], ["./usr/share/seabios"], ["usr/share/seabios/bios.bin"]),
    "busybox": (["busybox-static"], ["*bin/busybox"], ["**/busybox"]),
    "qemu": (["qemu-system-x86"], [], ["usr/bin/qemu-system-x86_64"]),
}


class Unavailable(Exception):
    """A peer cannot be had, and why."""


class Apt:
    """apt with lists and caches of its own, so that it needs no rights and changes nothing."""

    def __init__(self, folder: Path) -> None:
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise Unavailable("this is no Debian system: there is no apt-get")
        self.debs = folder / "debs"
        state = folder / "state"
        for path in (self.debs / "partial", state / "lists" / "partial"):
            path.mkdir(parents=True, exist_ok=True)
        self.options = [
            "-qq",
            "-oDebug::NoLocking=1",
            "-oAPT::Sandbox::User=",
            f"-oDir::State={state}",
            "-oDir::State::status=/var/lib/dpkg/status",
            f"-oDir::Cache={folder}",
            f"-oDir::Cache::archives={self.debs}",
        ]
        self.updated = False

    def run(self, *words: str, program: str = "apt-get") -> str:
        command = [program, *self.options, *words]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=900, check=False, cwd=self.debs
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{program} {words[0]} took longer than 15 minutes") from None
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines()
            raise Unavailable(lines[-1] if lines else f"{program} {words[0]} failed")
        return done.stdout

    def update(self) -> None:
        if not self.updated:
            self.run("update")
            self.updated = True

    def fetch(self, packages: list[str], recursive: bool) -> list[Path]:
        """Download *packages*, and what they need beyond the system's own if *recursive*."""
        self.update()
        if recursive:
            words = ["install", "--no-install-recommends", "--print-uris", "-y", *packages]
            found = re.findall(r"^'[^']*' (\S+_\S+\.deb) ", self.run(*words), re.MULTILINE)
            names = [name.split("_")[0] for name in found] or packages
        else:
            names = packages
        before = set(self.debs.glob("*.deb"))
        self.run("download", *names)
        return sorted(set(self.debs.glob("*.deb")) - before)


def resolve(apt: Apt, package: str) -> str:
    """Return what a meta-package stands for."""
    apt.update()
    text = apt.run("depends", "--important", package, program="apt-cache")
    match = re.search(r"Depends: (linux-image-\d\S+)", text)
    return match[1] if match else package


def unpack(deb: Path, parts: list[str], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as source:
        subprocess.run(
            ["tar", "-x", "-C", target, "--wildcards", *parts], stdin=source.stdout, check=True
        )
    deb.unlink()


def present(folder: Path, name: str) -> Path | None:
    found = [sorted((folder / name).glob(pattern)) for pattern in PEERS[name][2]]
    return found[0][-1] if all(found) else None


def fetch(apt: Apt, folder: Path, name: str) -> None:
    packages, parts, _ = PEERS[name]
    if name == "kernel":
        packages = [resolve(apt, packages[0])]
    target = folder / name
    partial = folder / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for deb in apt.fetch(packages, recursive=not parts):
        unpack(deb, parts, partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def main(arguments: list[str]) -> None:
    if not arguments:
        sys.exit(__doc__)
    folder = Path(arguments[0]).resolve()
    apt: Apt | None = None
    for name in arguments[1:] or PEERS:
        place: Path | str | None = present(folder, name)
        if name == "qemu" and shutil.which("qemu-system-x86_64"):
            place = f"{shutil.which('qemu-system-x86_64')} (the system's)"
        if place is None:
            print(f"{name}: fetching …", flush=True)
            try:
                apt = apt or Apt(folder / "apt")
                fetch(apt, folder, name)
                place = present(folder, name)
                if place is None:
                    raise Unavailable("the package does not hold what it should")
            except (Unavailable, OSError, subprocess.SubprocessError) as error:
                print(f"{name}: cannot be had: {error}; tests that need it are skipped")
                continue
        shown = os.path.relpath(place) if isinstance(place, Path) else place
        print(f"{name}: {shown}")


if __name__ == "__main__":
    main(sys.argv[1:])
