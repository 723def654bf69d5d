"""What the tests share: which KVM is there, which peers, and how to skip by name."""

import os
import runpy
import shutil
import signal
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

import kvmsr
from kvmsr import backend
from kvmsr.errors import KvmsrError
from kvmsr.kvm import Kvm
from tests.harness import Guest
from tests.skipped import pytest_sessionfinish, pytest_terminal_summary

__all__ = ("pytest_sessionfinish", "pytest_terminal_summary")

ROOT = Path(__file__).parent.parent
PEERS = Path(os.environ.get("KVMSR_PEERS", ROOT / ".peers"))
PACKAGE = Path(kvmsr.__file__).parent
GUESTS = PACKAGE / "machine/guests"

# Started in the background of a shell, SIGINT is ignored here, and all children would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Timing means nothing on shared machines: no test may fail because one example took long.
settings.register_profile("kvmsr", deadline=None, print_blob=True)
settings.load_profile("kvmsr")


def installed() -> str:
    """Return how kvmsr is installed: see tools/install.py, which need not be here."""
    script = ROOT / "tools/install.py"
    return runpy.run_path(str(script))["state"]() if script.exists() else "foreign"


def pytest_configure(config):
    if PACKAGE.is_relative_to(ROOT / "src") and installed() != "editable":
        raise pytest.UsageError(f"kvmsr is taken from {PACKAGE}, not as installed: see PYTHONPATH")
    if installed() == "stale":
        raise pytest.UsageError(
            "the installed kvmsr is not that of src any more: run `make install`, or `make dev`"
            " to test the files in src as they are"
        )


def pytest_report_header(config):
    return f"kvmsr: {PACKAGE} ({installed()})"


@cache
def kvm_missing() -> str:
    """Return what is missing for tests that need KVM, or ""."""
    try:
        Kvm(backend.open("kvm")).close()
    except KvmsrError as error:
        return str(error)
    return ""


def pytest_collection_modifyitems(items):
    # Files with slow tests come first, so that no process is left with one of them at the end.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    for item in items:
        if item.get_closest_marker("kvm") and kvm_missing():
            item.add_marker(pytest.mark.skip(reason=f"needs /dev/kvm: {kvm_missing()}"))


def need(tool: str) -> str:
    """Return the path of a tool, or skip the test by its name."""
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"needs {tool}")
    return path


def peer(name: str, pattern: str) -> Path:
    """Return a file of a peer, or skip the test by the peer's name."""
    found = sorted((PEERS / name).glob(pattern))
    if not found:
        pytest.skip(f"needs {name}, which tools/fetch_peers.py fetches")
    return found[-1]


@pytest.fixture(scope="session")
def host():
    """Return the host's KVM as a backend."""
    return backend.open("kvm")


@pytest.fixture(scope="session", params=["kvm", "soft"])
def any_backend(request):
    """Return each backend that is here."""
    if request.param == "kvm" and kvm_missing():
        pytest.skip(f"needs /dev/kvm: {kvm_missing()}")
    return backend.open(request.param)


def need_cap(kvm, *caps):
    """Skip the test if this KVM lacks a capability."""
    for cap in caps:
        if not kvm.check_extension(cap):
            pytest.skip(f"the {kvm.backend.name} backend has no KVM_CAP_{cap.name}")


@pytest.fixture
def kvm(any_backend):
    with Kvm(any_backend) as handle:
        yield handle


@pytest.fixture
def guest(kvm):
    """Return a vCPU in real mode and its memory."""
    made = Guest(kvm)
    yield made
    made.close()


@pytest.fixture
def guest_with_irqchip(kvm):
    made = Guest(kvm, irqchip=True)
    yield made
    made.close()


@pytest.fixture(scope="session")
def kernel() -> Path:
    """Return Debian's cloud kernel."""
    return peer("kernel", "boot/vmlinuz-*")


@pytest.fixture(scope="session")
def seabios() -> Path:
    """Return the folder with SeaBIOS' images."""
    return peer("seabios", "usr/share/seabios/bios.bin").parent


@pytest.fixture(scope="session")
def qemu() -> list[str]:
    """Return the command that starts QEMU: the system's, or the fetched one with its libraries."""
    system = shutil.which("qemu-system-x86_64")
    if system:
        return [system]
    binary = peer("qemu", "usr/bin/qemu-system-x86_64")
    root = binary.parents[2]
    libraries = {str(path.parent) for path in root.glob("**/*.so.*")}
    environment = f"LD_LIBRARY_PATH={':'.join(sorted(libraries))}"
    data = [option for part in ("qemu", "seabios") for option in ("-L", root / "usr/share" / part)]
    return ["env", environment, str(binary), *map(str, data)]


@pytest.fixture(scope="session")
def vmm(tmp_path_factory) -> list[Path]:
    """Return the command that starts a small VMM, which knows nothing of kvmsr, with its image."""
    program = tmp_path_factory.mktemp("vmm") / "vmm"
    source = ROOT / "tests/attach/vmm.c"
    subprocess.run([need("cc"), "-O2", "-pthread", "-o", program, source], check=True)
    return [program, GUESTS / "loop.bin"]


@pytest.fixture
def start():
    """Return a function that starts a program whose processes all end with the test."""
    begun = []

    def start(words, **options):
        process = subprocess.Popen(list(map(str, words)), start_new_session=True, **options)
        begun.append(process)
        return process

    yield start
    for process in begun:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a group of its own
        process.wait()
        for stream in filter(None, (process.stdout, process.stderr)):
            stream.close()
