#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Fetch the real programs that the tests and the demo run against: Debian's cloud kernel, SeaBIOS,
busybox, QEMU, tools that check tables, other guests, Chromium to look at reports, and Linux's KVM
selftests, which are built from the kernel's source. Each comes as a Debian package and is unpacked
into a folder of its own; nothing is installed, nothing outside that folder is touched, and no
rights are needed. What cannot be had is named with the reason: tests that need it are skipped, or,
with KVMSR_REQUIRE_PEERS=1, this exits with status 1.

    tools/fetch_peers.py FOLDER [NAME…]
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

REQUIRED = os.environ.get("KVMSR_REQUIRE_PEERS", "0") != "0"
TRIES = 10 if REQUIRED else 3
PAUSE = 10
"""Seconds between two tries: a mirror that is being brought up to date is whole soon after."""

# For the machine of tests/nested: KVM, what it needs, and the driver of /dev/cpu/*/msr. For tools
# that look at power and frequency: the drivers that they go through.
MODULES = [
    f"*lib/modules/*/kernel/{part}"
    for part in (
        "arch/x86/kvm/*", "virt/lib/*", "arch/x86/kernel/msr.ko*", "arch/x86/kernel/cpuid.ko*",
        "arch/x86/events/rapl.ko*", "arch/x86/platform/intel/iosf_mbi.ko*", "drivers/powercap/*",
        "drivers/cpufreq/acpi-cpufreq.ko*",
    )
]  # fmt: skip
# For guests that have a disk and a console.
MODULES += [
    f"*lib/modules/*/kernel/drivers/{part}"
    for part in ("virtio/*", "block/virtio_blk.ko*", "char/virtio_console.ko*")
]
TOOLS_NEED = ["libcpupower1", "libpci3", "libcap2"]
# Python's shared library, for the soft backend in a VMM.
PYTHON = f"libpython{sys.version_info.major}.{sys.version_info.minor}"
LIBPYTHON = f"{PYTHON}.so.1.0"
PEERS = {
    # name: (packages, what to unpack of them, what must be there afterwards)
    "kernel": (
        ["linux-image-cloud-amd64"],
        ["./boot", *MODULES],
        ["boot/vmlinuz-*", "**/kvm-amd.ko*", "**/virtio_blk.ko*", "**/iosf_mbi.ko*"],
    ),
    "seabios": (["seabios"], ["./usr/share/seabios"], ["usr/share/seabios/bios.bin"]),
    "acpica": (["acpica-tools"], ["*bin/iasl"], ["usr/bin/iasl"]),
    "busybox": (["busybox-static"], ["*bin/busybox"], ["**/busybox"]),
    "memtest": (["memtest86+"], ["./boot"], ["boot/memtest86+x64.bin", "boot/memtest86+ia32.bin"]),
    "dmidecode": (["dmidecode"], ["*bin/dmidecode"], ["usr/sbin/dmidecode"]),
    "qemu": (["qemu-system-x86"], [], ["usr/bin/qemu-system-x86_64"]),
    "tools": (
        ["linux-cpupower", "msr-tools", "x86info", *TOOLS_NEED],
        ["*"],
        ["usr/sbin/turbostat", "usr/sbin/rdmsr", "usr/bin/x86info"],
    ),
    "perf": (["linux-perf"], [], ["usr/bin/perf"]),
    "ipxe": (["ipxe"], ["./boot"], ["boot/ipxe.lkrn"]),
    "ovmf": (["ovmf"], ["./usr/share/ovmf/OVMF.fd"], ["usr/share/ovmf/OVMF.fd"]),
    "xen": (["xen-system-amd64"], ["./boot"], ["boot/xen-4*.gz"]),
    "chromium": (["chromium"], [], ["usr/lib/chromium/chromium"]),
    "selftests": (
        ["linux-source-6.1"],
        ["./usr/src/linux-source-6.1.tar.xz"],
        ["x86_64/userspace_msr_exit_test"],
    ),
    "libpython": ([PYTHON], ["*/" + LIBPYTHON], ["**/" + LIBPYTHON]),
}

SYSTEM = {"qemu": "qemu-system-x86_64", "perf": "perf", "chromium": "chromium"}
"""Programs that need not be fetched where the system has them."""

# Of the kernel's source: what `make headers` and the KVM selftests are made from.
SELFTESTS = "tools/testing/selftests"
SOURCES = [
    f"linux-source-*/{part}"
    for part in (
        "Makefile", "scripts", "include/uapi", "arch/x86/Makefile*", "arch/x86/include/uapi",
        "arch/x86/entry/syscalls", "arch/x86/tools", "tools/include", "tools/arch/x86/include",
        "tools/build", "tools/scripts", "tools/lib/rbtree.c", f"{SELFTESTS}/kvm",
        f"{SELFTESTS}/rseq", f"{SELFTESTS}/*.*",
    )
]  # fmt: skip


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
            "-oAPT::Architectures=amd64",  # the lists of this system's other ones are of no use
            "-oAcquire::Languages=none",
            "-oAcquire::http::Timeout=30",
            f"-oDir::State={state}",
            "-oDir::State::status=/var/lib/dpkg/status",
            f"-oDir::Cache={folder}",
            f"-oDir::Cache::archives={self.debs}",
        ]
        self.complaint = ""

    def update(self) -> None:
        """Read the lists. One that cannot be had is no harm unless a package is missing then."""
        self.complaint = complaint(self.call("apt-get", "update").stderr)

    def fetch(self, packages: list[str], recursive: bool) -> list[Path]:
        """Download *packages*, and what they need beyond the system's own if *recursive*."""
        if recursive:
            words = ["install", "--no-install-recommends", "--print-uris", "-y", *packages]
            uris = self.run("apt-get", *words)
            found = re.findall(r"^'[^']*' (\S+_\S+\.deb) ", uris, re.MULTILINE)
            packages = [name.split("_")[0] for name in found] or packages
        for left in self.debs.glob("*.deb"):
            left.unlink()
        self.run("apt-get", "download", *packages)
        return sorted(self.debs.glob("*.deb"))

    def run(self, program: str, *words: str) -> str:
        """Return what a program puts out; if it fails, that and what update did not get is why."""
        done = self.call(program, *words)
        if done.returncode:
            why = complaint(done.stderr) or f"{program} {words[0]} failed"
            raise Unavailable("; ".join(filter(None, (why, self.complaint))))
        return done.stdout

    def call(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [program, *self.options, *words]
        try:
            return subprocess.run(
                command, capture_output=True, text=True, timeout=600, check=False, cwd=self.debs,
                env=os.environ | {"LC_ALL": "C"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{program} {words[0]} took longer than 10 minutes") from None


def complaint(errors: str) -> str:
    """Return what is wrong according to apt's error output: two lines, errors before warnings."""
    lines = [
        line
        for line in sorted(errors.splitlines())
        if line.startswith(("E: ", "W: ")) and "Some index files failed" not in line
    ]
    return "; ".join(line[3:] for line in lines[:2])


def resolve(apt: Apt, package: str) -> str:
    """Return what a meta-package stands for."""
    text = apt.run("apt-cache", "depends", "--important", package)
    match = re.search(r"Depends: ((?:linux-image|xen-hypervisor)-\d\S+)", text)
    return match[1] if match else package


def unpack(deb: Path, parts: list[str], target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as source:
        subprocess.run(
            ["tar", "-x", "-C", target, "--wildcards", *parts], stdin=source.stdout, check=True
        )
    deb.unlink()


def build_selftests(folder: Path) -> None:
    """Build Linux's KVM selftests for x86 from the source in *folder*, and leave nothing else."""
    jobs = f"-j{os.cpu_count() or 1}"
    (archive,) = folder.glob("usr/src/*.tar.xz")
    source = folder / "source"
    source.mkdir()
    wanted = ["--strip-components=1", "--wildcards", "--no-wildcards-match-slash", *SOURCES]
    build("tar", "-xJf", archive, "-C", source, *wanted)
    tests = source / SELFTESTS / "kvm"
    programs = [path.with_suffix("") for path in sorted(tests.glob("x86_64/*.c"))]
    build("make", "-C", source, jobs, "headers")
    # Not all need build with every compiler; if none does, present() sees it.
    build("make", "-C", tests, jobs, "-k", *programs, check=False)
    (folder / "x86_64").mkdir()
    for program in filter(Path.exists, programs):
        build("strip", "-o", folder / "x86_64" / program.name, program)
    for left in (source, folder / "usr"):
        shutil.rmtree(left)


def build(*words: str | Path, check: bool = True) -> None:
    # What a make above says is not meant for this one.
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("MAKE")}
    environment.pop("MFLAGS", None)
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if check and done.returncode:
        lines = done.stderr.strip().splitlines() or ["it failed"]
        raise Unavailable(f"{words[0]}: {lines[-1]}")


BUILD = {"selftests": (build_selftests, ("gcc", "make", "strip", "xz"))}
"""What is done with what a package holds, and the programs that this takes."""


def present(folder: Path, name: str) -> Path | None:
    found = [sorted((folder / name).glob(pattern)) for pattern in PEERS[name][2]]
    return found[0][-1] if all(found) else None


def fetch(apt: Apt, folder: Path, name: str) -> None:
    packages, parts, _ = PEERS[name]
    if name in ("kernel", "xen"):
        packages = [resolve(apt, packages[0])]
    target = folder / name
    partial = folder / f"{name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for deb in apt.fetch(packages, recursive=not parts):
        unpack(deb, parts, partial)
    if name in BUILD:
        BUILD[name][0](partial)
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    if present(folder, name) is None:
        raise Unavailable("the package does not hold what it should")


def fetch_all(folder: Path, names: list[str]) -> dict[str, str]:
    """Fetch peers, in a few tries; return those that cannot be had, and why."""
    hopeless = {name: why for name in names if (why := lacks(name))}
    missing = {name: "" for name in names if name not in hopeless}
    for number in range(TRIES):
        if not missing:
            break
        if number:
            print(f"trying again in {PAUSE} s: {next(iter(missing.values()))}", flush=True)
            time.sleep(PAUSE)
        try:
            apt = Apt(folder / "apt")
            apt.update()
        except (Unavailable, OSError) as error:
            return dict.fromkeys(missing, str(error)) | hopeless
        for name in list(missing):
            print(f"{name}: fetching …", flush=True)
            try:
                fetch(apt, folder, name)
                del missing[name]
            except (Unavailable, OSError, subprocess.SubprocessError) as error:
                missing[name] = str(error)
    return missing | hopeless


def lacks(name: str) -> str:
    """Return why a peer cannot be built here, or ""."""
    programs = [each for each in BUILD.get(name, ((), ()))[1] if not shutil.which(each)]
    return f"to build it takes {', '.join(programs)}" if programs else ""


def here(folder: Path, name: str) -> str:
    """Return where a peer is, or "" if it is yet to be fetched."""
    system = shutil.which(SYSTEM[name]) if name in SYSTEM else None
    if name == "libpython":
        folders = [str(sysconfig.get_config_var(name)) for name in ("LIBDIR", "LIBPL")]
        folders.append(f"/usr/lib/{sysconfig.get_config_var('MULTIARCH')}")
        system = next((path for path in folders if Path(path, LIBPYTHON).exists()), None)
    if system:
        return f"{system} (the system's)"
    place = present(folder, name)
    return os.path.relpath(place) if place else ""


def main(arguments: list[str]) -> None:
    if not arguments:
        sys.exit(__doc__)
    # The real path: make compares what it is asked for with its own working directory.
    folder = Path(arguments[0]).resolve()
    wanted = arguments[1:] or list(PEERS)
    missing = fetch_all(folder, [name for name in wanted if not here(folder, name)])
    for name in wanted:
        print(f"{name}: {here(folder, name) or f'CANNOT BE HAD: {missing[name]}'}")
    if missing and REQUIRED:
        sys.exit("KVMSR_REQUIRE_PEERS is set, and not all peers can be had")


if __name__ == "__main__":
    main(sys.argv[1:])
