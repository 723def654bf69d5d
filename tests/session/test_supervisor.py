"""Handlers that no thread survives: the run ends on time and reports why."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from kvmsr import Model, Policy, Rule, native
from kvmsr.dispatch.models import Register, RegisterModel
from kvmsr.session.supervisor import runs_code
from tests.command import words_of
from tests.conftest import GUESTS, kvm_missing

HANDLERS = """
import ctypes
import os

def hangs(access):
    return sum(range(10**12))  # never releases the interpreter

def leaves(access):
    os._exit(0)

def crashes(access):
    ctypes.string_at(0)

def answers(access):
    return 7
"""


@pytest.fixture(params=["kvm", "soft"])
def backend(request):
    if request.param == "kvm" and kvm_missing():
        pytest.skip(f"needs /dev/kvm: {kvm_missing()}")
    return request.param


def command(folder, handler, backend, *options):
    (folder / "mine.py").write_text(HANDLERS)
    (folder / "policy.toml").write_text(
        "[[rule]]\nmsr = 0x36\nread = { value = 7 }\n"
        f'[[rule]]\nmsr = 0x35\nread = {{ python = "mine:{handler}" }}\n'
    )
    return words_of(
        "run", GUESTS / "list.elf", "--append", "36 36 35", "--policy", folder / "policy.toml",
        "--backend", backend, "--serial", folder / "serial", "--json", *options,
    )  # fmt: skip


def finished(process, seconds):
    out, err = process.communicate(timeout=seconds)
    return json.loads(out), err


@pytest.fixture
def begin(start):
    def begin(folder, handler, backend, *options):
        words = command(folder, handler, backend, *options)
        return start(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return begin


def counted(result):
    return [(row["index"], row["count"]) for row in result["accesses"]]


def check_summary(result, backend):
    if backend == "kvm" and native.available():
        assert counted(result) == [("0x36", 2)]
    else:
        assert any("counted in Python, and the counts" in note for note in result["notes"])


def runs(folder):
    """Wait until the guest makes the access that the handler answers."""
    for _ in range(300):
        if (folder / "serial").exists() and b"35" in (folder / "serial").read_bytes():
            time.sleep(0.2)
            return
        time.sleep(0.1)
    raise AssertionError("the guest does not run")


def test_a_handler_that_holds_the_interpreter_ends_with_the_timeout(tmp_path, backend, begin):
    process = begin(tmp_path, "hangs", backend, "--timeout", "0.5")
    result, err = finished(process, 40)
    assert (process.returncode, result["exit"]["kind"], err) == (124, "timeout", "")
    assert "0.5 seconds are over; a handler held Python's interpreter" in result["exit"]["detail"]
    assert result["wall_s"] < 0.5 + 5 + 1
    check_summary(result, backend)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nor_a_signal(tmp_path, backend, begin, number):
    process = begin(tmp_path, "hangs", backend)
    runs(tmp_path)
    process.send_signal(number)
    begun = time.monotonic()
    result, _ = finished(process, 40)
    assert time.monotonic() - begun < 8
    assert (process.returncode, result["exit"]["kind"]) == (130, "stop")
    check_summary(result, backend)


@pytest.mark.parametrize(
    ("handler", "how"), [("leaves", "with status 0"), ("crashes", "by SIGSEGV")]
)
def test_a_handler_that_ends_the_process_does_not_look_like_success(
    tmp_path, backend, begin, handler, how
):
    process = begin(tmp_path, handler, backend)
    result, _ = finished(process, 40)
    assert process.returncode == 6
    assert result["exit"]["detail"] == f"a handler ended the process {how}"
    check_summary(result, backend)


def test_with_a_handler_that_behaves_nothing_is_different(tmp_path, backend, begin):
    process = begin(tmp_path, "answers", backend)
    result, err = finished(process, 40)
    assert (process.returncode, err) == (0, "")
    assert counted(result) == [("0x35", 1), ("0x36", 2)]


def test_the_work_ends_with_its_supervisor(tmp_path, backend, begin):
    process = begin(tmp_path, "hangs", backend)
    runs(tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 1
    process.kill()
    process.communicate(timeout=20)
    for _ in range(100):
        if not Path("/proc", children[0]).exists():
            return
        time.sleep(0.1)
    os.kill(int(children[0]), signal.SIGKILL)
    raise AssertionError("it did not")


class Own(RegisterModel):
    """A model that does not come with kvmsr."""

    status = Register(0x35)


def test_only_code_of_the_owners_is_watched_over():
    assert runs_code(Policy([Rule(0x35, read=Model(Own))]))
    assert runs_code(Policy([Rule(0x35, read=lambda access: 1)]))
    assert not runs_code(Policy([Rule(0x35, read=Model("topology.core-thread-count"))]))
    assert not runs_code(Policy([Rule(0x35, read=5, write="shadow")]))
