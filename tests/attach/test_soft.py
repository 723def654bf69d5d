"""
``kvmsr exec --backend soft``: unmodified programs whose /dev/kvm is the soft backend.

What they say of it, they say of the host's KVM, too.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from kvmsr import native
from kvmsr.attach.soft import find_python
from kvmsr.backend import HostBackend
from kvmsr.backend.soft import DEFAULT_PROFILE
from kvmsr.cli._vmm_backend import backend_of
from kvmsr.errors import BackendError
from tests.attach.qemu import SEEN, guest, lines, summary, under
from tests.attach.test_other_vmms import IN_REAL_MODE, flat
from tests.command import call, words_of
from tests.conftest import PEERS, ROOT, kvm_missing, need, peer

__all__ = ("flat",)

SECONDS = 300
CONSTANT = "[[rule]]\nmsr = 0x35\nread = { value = 0x1200 }\n"
COUNT = 2000


def why_not_soft():
    for fetched in (PEERS / "libpython").glob("**/libpython*.so.1.0"):
        os.environ.setdefault("KVMSR_LIBPYTHON", str(fetched))
    try:
        find_python()
    except BackendError as error:
        return str(error)
    return native.why_not()


pytestmark = [pytest.mark.skipif(bool(why_not_soft()), reason=f"needs {why_not_soft()}")]


def command(folder, *vmm, policy=CONSTANT, backend="soft", options=()):
    (folder / "policy.toml").write_text(policy)
    return words_of(
        "exec", "--backend", backend, "--policy", folder / "policy.toml", *options,
        "--json", "--summary", folder / "summary.json", "--", *vmm,
    )  # fmt: skip


def run(folder, *vmm, **options):
    done = subprocess.run(
        command(folder, *vmm, **options), capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip
    summary = folder / "summary.json"
    return done, json.loads(summary.read_text()) if summary.exists() else None


# The policy


def test_the_policy_decides_what_the_guest_sees(tmp_path, vmm):
    done, report = run(tmp_path, *vmm, COUNT)
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (7, str(0x1200), "")
    assert (report["backend"], report["exit"]["kind"]) == ("soft", "vmm")
    [row] = report["accesses"]
    assert (row["index"], row["count"], row["last_value"]) == ("0x35", COUNT, "0x1200")
    assert (report["notes"], report["losses"]) == ([], [])


def test_a_profile_that_cannot_have_policies_is_refused(tmp_path):
    done, report = run(tmp_path, "true", options=["--soft-profile", "patch-v3"])
    assert (done.returncode, report) == (4, None)
    assert "KVM_CAP_X86_MSR_FILTER" in done.stderr


def test_a_trace_shows_what_came_of_it(tmp_path, vmm):
    trace = tmp_path / "t.arrows"
    run(tmp_path, *vmm, 3, options=["--trace", trace, "--trace-rip"])
    shown = subprocess.run(
        words_of("trace", "show", trace, "--json"), capture_output=True, text=True, check=True
    )
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [row["value"] for row in rows] == ["0x1200"] * 3
    assert [row["rip"] for row in rows] == ["0x7c15"] * 3


PYTHON = '[[rule]]\nmsr = 0x35\nread = { python = "counting:up" }\n'
UP = "count = 0\n\ndef up(access):\n    global count\n    count += 1\n    return count << 8\n"


@pytest.mark.parametrize("storm", [[], ["storm"]], ids=["calm", "storm"])
def test_a_handler_is_asked_once_for_each_access(tmp_path, vmm, storm):
    (tmp_path / "counting.py").write_text(UP)
    done, report = run(tmp_path, *vmm, COUNT, *storm, policy=PYTHON)
    eax, kicks = map(int, done.stdout.split())
    assert (eax, report["totals"]["reads"]) == (COUNT << 8, COUNT)
    assert not storm or kicks > 10


@pytest.mark.parametrize("how", ["high", "moved", "fork", "deny", "watch"])
def test_no_descriptor_and_no_filter_escapes(tmp_path, vmm, how):
    done, report = run(tmp_path, *vmm, COUNT, how)
    assert (done.returncode, done.stderr) == (7, "")
    assert (done.stdout.split()[0], report["totals"]["reads"]) == (str(0x1200), COUNT)


# Processes


@pytest.fixture(scope="module")
def life(tmp_path_factory):
    program = tmp_path_factory.mktemp("life") / "life"
    source = ROOT / "tests/attach/life.c"
    subprocess.run([need("cc"), "-O2", "-pthread", "-o", program, source], check=True)
    return program


SAID = {
    "alarm": "handled 1, exit 10, soon\n",
    "halted": "handled 1, exit 10, soon\n",
    "kicks": "handled 300, each ended a KVM_RUN\n",
    "immediate": "then 0x1200\n",
    "mask": "handled 0, eaten 1, then 0x1200\nhandled 0, then 0x1200, handled 1\n",
    "process": "first first first handled all, own\n",
    "ignored": "handled 1, at its time\n",
    "cancel": "cancelled 15, then 0x1200\n",
    "busy": "waited\n",
    "threads": "1200 reads, sum 0x546000\n",
    "fork": "child: 3 of 3, own 0x1200\n" * 5 + "parent: 0x1200\n",
    "opens": "0 descriptors more, little memory\n",
    "orders": "0x1200 0x1200 closed 0x1200\n",
    "device": "10:232 character same access 0 -1 cloexec 0\n12\n",
}


@pytest.mark.parametrize("what", SAID)
@pytest.mark.parametrize("backend", ["soft", "kvm"])
def test_processes_and_signals(tmp_path, life, backend, what):
    if backend == "kvm" and kvm_missing():
        pytest.skip(f"needs /dev/kvm: {kvm_missing()}")
    done, report = run(tmp_path, life, what, backend=backend)
    assert (done.stdout, done.returncode) == (SAID[what], 0)
    assert report["backend"] == backend


def test_a_vmm_that_crashes(tmp_path, life):
    done, report = run(tmp_path, life, "crash")
    assert done.returncode == 128 + signal.SIGSEGV
    assert report["totals"]["reads"] == 1
    assert report["exit"]["detail"].endswith("was ended by SIGSEGV")


def test_a_vmm_that_is_stopped(tmp_path, vmm):
    stop = '[[rule]]\nmsr = 0x35\nread = "stop"\n'
    done, report = run(tmp_path, *vmm, COUNT, policy=stop)
    assert (done.returncode, report["exit"]["kind"]) == (6, "stop")


# Programs


def selftest(name):
    folder = os.environ.get("KVM_SELFTESTS")
    if folder is None:
        return peer("selftests", f"x86_64/{name}")
    return Path(folder, "x86_64", name)


@pytest.mark.parametrize("prefix", ["", ",force_emulation_prefix"], ids=["plain", "prefix"])
def test_the_kernels_own_test_of_msr_exits(tmp_path, prefix):
    """Linux's selftest userspace_msr_exit_test, with all that it can test on such a kernel."""
    program = selftest("userspace_msr_exit_test")
    profile = ["--soft-profile", f"linux-6.1-amd{prefix}"]
    done, report = run(tmp_path, program, policy="", options=profile)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("kvm.force_emulation_prefix=1" in done.stdout) == (not prefix)  # what it left out
    assert len(report["vms"]) >= 3


@pytest.mark.peer
@pytest.mark.parametrize("irqchip", ["off", "on"])
def test_qemu(tmp_path, qemu, irqchip):
    machine = f"pc,kernel-irqchip={irqchip}"
    words = under(tmp_path, *guest(qemu, tmp_path, machine=machine), options=["--backend", "soft"])
    done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.returncode, lines(tmp_path)) == (0, SEEN), done.stderr
    assert summary(tmp_path)["backend"] == "soft"


@pytest.mark.peer
def test_what_qemu_lacks_is_said_by_its_name(tmp_path, qemu):
    words = guest(qemu, tmp_path, machine="pc,kernel-irqchip=split")
    done, report = run(tmp_path, *words)
    assert done.returncode == 1
    assert report["notes"] == [
        "the VMM asked for KVM_CAP_SPLIT_IRQCHIP, which the soft backend does not have"
    ]


def test_kvmtool(tmp_path, flat):
    program = os.environ.get("KVMSR_KVMTOOL")
    if not program:
        pytest.skip("needs KVMSR_KVMTOOL, the program lkvm of kvmtool")
    words = [program, *"run -m 64 -c 2 --console serial -n mode=none -k".split(), flat]
    under_soft = under(tmp_path, *words, options=["--backend", "soft"])
    done = subprocess.run(
        under_soft, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS,
        check=False,
    )  # fmt: skip
    if "does not support hardware virtualization" in done.stdout + done.stderr:
        pytest.skip("needs a CPU with VMX or SVM, for which kvmtool looks itself")
    seen = [line for line in done.stdout.splitlines() if line.startswith(("rdmsr", "wrmsr"))]
    assert (done.returncode, seen) == (0, IN_REAL_MODE), done.stderr


# Python


def test_a_vmm_that_is_a_python(tmp_path):
    done, report = run(tmp_path, sys.executable, ROOT / "tests/attach/python_vmm.py", "a", "b")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "['a', 'b'] 0x1200 0x1200 0x1200",
        "thread 0x1200",
        "KVM_RUN -1 Interrupted system call 1 soon",
        "child Input/output error 0x1200",
        "parent 0x1200",
    ]
    assert (done.returncode, report["totals"]["reads"]) == (0, 6)


def another_python():
    """Return a Python of another version, from PATH or from beside this one, or skip the test."""
    own = sys.version_info.minor
    named = (shutil.which(f"python3.{minor}") for minor in range(8, 20) if minor != own)
    beside = sorted(Path(sys.base_prefix).parent.glob("3.*/bin/python3"))
    script = "import sys; print(sys.version_info.minor)"
    for python in filter(None, (*named, *beside)):
        done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
        if done.returncode == 0 and int(done.stdout) not in (own, 6, 7):
            return python
    return pytest.skip("needs a Python of another version")


def test_a_python_of_another_version_is_refused(tmp_path):
    done, report = run(tmp_path, another_python(), ROOT / "tests/attach/python_vmm.py")
    assert "No such device: '/dev/kvm'" in done.stderr
    assert "the VMM has a Python of its own, 3." in report["notes"][0]


# What is missing


def test_without_pythons_library_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr("kvmsr.attach.soft._NAME", "libpython2.4.so.1.0")
    monkeypatch.delenv("KVMSR_LIBPYTHON", raising=False)
    with pytest.raises(BackendError, match=r"^libpython2\.4\.so\.1\.0 is missing, .*: install it"):
        find_python()


def test_a_library_elsewhere_can_be_named(monkeypatch, tmp_path):
    monkeypatch.setenv("KVMSR_LIBPYTHON", str(tmp_path / "none.so"))
    with pytest.raises(BackendError, match=r"^KVMSR_LIBPYTHON=.*: there is no such file"):
        find_python()


def test_without_kvm_a_line_says_that_there_is_soft(monkeypatch):
    monkeypatch.setattr("kvmsr.backend.HostBackend", partial(HostBackend, "/dev/not-there"))
    with pytest.raises(BackendError, match=r"cannot open /dev/not-there.*--backend soft"):
        backend_of("kvm", DEFAULT_PROFILE)


def test_a_wrapper_keeps_the_options(tmp_path, vmm):
    script = tmp_path / "wrapped"
    done = call("wrap", vmm[0], "--backend", "soft", "--soft-profile", "pvm", "-o", script)
    assert done.returncode == 0, done.stderr
    assert "exec --backend soft --soft-profile pvm -- " in script.read_text()
