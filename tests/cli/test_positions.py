"""What ``kvmsr run`` says of where the guest was, when it did not end the run itself."""

import json
import signal
import subprocess
import time

import pytest

from kvmsr.cli._table import print_positions
from kvmsr.session import End, EndKind, Position, RunResult
from kvmsr.trace import Summary
from tests.command import call, words_of

# mov $'H', %al; mov $0x3f8, %dx; out %al, %dx; in $0x64, %al; jmp to the IN
POLLS = b"\xb0H\xba\xf8\x03\xee\xe4\x64\xeb\xfc"


@pytest.fixture
def image(tmp_path):
    (tmp_path / "guest").write_bytes(POLLS)
    return tmp_path / "guest"


def lines(stderr):
    """Return what is said, without how often the guest has gone round its loop."""
    assert "Traceback" not in stderr
    return stderr.splitlines()


def check(stderr):
    head, port, last = lines(stderr)
    rip = int(head.split()[3].rstrip(","), 16)
    assert 0x7C06 <= rip <= 0x7C08
    assert head.startswith("vCPU 0  RIP 0x7c0")
    assert head.endswith(", real mode, 16-bit code, CPL 0, running, interrupts off")
    assert port == "        last port   read  0x64 0xfd (keyboard controller)"
    assert last == "last line of output: H"


def test_timeout(image, backend):
    done = call("run", image, "--mode", 16, "--backend", backend, "--timeout", 0.5)
    assert done.returncode == 124
    check(done.stderr)


def test_interrupt(image, backend):
    words = words_of("run", image, "--mode", 16, "--backend", backend)
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout.read(1) == b"H"
            time.sleep(0.5)  # it gets on to where it stays
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert b"stop: interrupted" in out
    check(err.decode())


def test_json(image, backend, tmp_path):
    done = call(
        "run", image, "--mode", 16, "--backend", backend, "--timeout", 0.5, "--cpus", 2, "--json",
        "--serial", tmp_path / "serial",
    )  # fmt: skip
    assert done.stderr == ""
    summary = json.loads(done.stdout)
    first, second = summary["vcpus"]
    assert 0x7C06 <= int(first.pop("rip"), 16) <= 0x7C08
    assert 0x7C06 <= int(first.pop("linear"), 16) <= 0x7C08
    assert first == {
        "vcpu": 0, "symbol": "", "mode": "real", "bits": 16, "cpl": 0, "state": "running",
        "interrupts": False, "memory": None,
        "port": {
            "address": "0x64", "op": "read", "size": 1, "value": "0xfd",
            "device": "keyboard controller",
        },
    }  # fmt: skip
    assert (second["state"], second["linear"]) == ("waits for INIT", "0xfffffff0")
    assert summary["last_line"] == "H"


def test_a_guest_that_leaves_is_not_looked_for(tmp_path, backend):
    (tmp_path / "guest").write_bytes(b"\xb0\x00\xe6\xf4")  # debug exit
    done = call("run", tmp_path / "guest", "--mode", 16, "--backend", backend)
    assert (done.returncode, done.stderr) == (1, "")


def test_many_vcpus(capsys):
    positions = tuple(Position(vcpu=number, problem="gone") for number in range(18))
    end = End(EndKind.TIMEOUT)
    print_positions(RunResult("kvm", "", "", end, Summary(), 1.0, positions=positions))
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in said[:-1]] == [str(number) for number in range(16)]
    assert said[-1] == "… and 2 more vCPUs: --json has all"


def test_symbols_that_cannot_be_read(image, tmp_path):
    done = call("run", image, "--mode", 16, "--symbols", tmp_path / "none", "--timeout", 5)
    assert done.returncode == 3
    assert f"{tmp_path}/none: the symbols cannot be read" in done.stderr
