"""A guest that has broken into its VMM owns that process, and not the controller."""

import json
import os
import subprocess
import sys
import time

import pytest

from kvmsr import Policy, Rule, backend, native
from kvmsr.attach.questions import Questions
from kvmsr.kvm import Kvm
from kvmsr.native import lib
from kvmsr.session import Session
from tests.attach import fuzz
from tests.attach.test_exec import CONSTANT, COUNT, PYTHON, command
from tests.command import words_of

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]

# Tries to change the table, as a VMM that the guest has taken over might.
TAMPER = """
import mmap, os
controller, block, tables = map(int, os.environ["KVMSR_BLOCK"].split(":"))
size = os.fstat(tables).st_size
tries = {
    "mmap": lambda: mmap.mmap(tables, size),
    "pwrite": lambda: os.pwrite(tables, b"nonsense", 0),
    "truncate": lambda: os.ftruncate(tables, 0),
    "punch": lambda: os.posix_fallocate(tables, 0, 2 * size),
    "reopen": lambda: mmap.mmap(os.open(f"/proc/{controller}/fd/{tables}", os.O_RDWR), size),
}
for name, attempt in tries.items():
    try:
        attempt()
    except PermissionError:
        continue
    print(name)
mmap.mmap(tables, size, prot=mmap.PROT_READ)
os.pwrite(block, b"nonsense", 0)
"""


def test_the_vmm_cannot_write_the_table(tmp_path):
    done = subprocess.run(
        command(tmp_path, CONSTANT, sys.executable, "-c", TAMPER),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_runs_under_it_may_not_control_it(tmp_path):
    code = """
import os, subprocess, sys
sys.exit(subprocess.run([*sys.argv[1:], str(os.getppid()), "reset"]).returncode)
"""
    done = subprocess.run(
        command(tmp_path, CONSTANT, sys.executable, "-c", code, *words_of("ctl")),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "what runs under it may not control it" in done.stderr
    assert done.stderr.count("\n") == 1


class Asker:
    """A VMM's side of the memory, in this process, that can ask what it likes."""

    def __init__(self, *rules):
        self.stopped = []
        self.kvm = Kvm(backend.open("kvm"))
        self.session = Session(Policy(rules), self.kvm, vcpus=2)
        block = self.session.shared.block
        block.take_vm()
        self.cpu = block.new_cpu(0, 0)
        self.questions = Questions(
            self.session, block, lambda *stop: self.stopped.append(stop), lambda: None
        )
        self.questions.serve()

    def ask(self, rule, index, op=0, verdict=None, **more):
        """Ask, and return the verdict and value of the answer; None if there is none."""
        cpu = self.cpu
        cpu.access.index, cpu.access.op, cpu.access.reason = index, op, lib.KVMSR_UNKNOWN
        cpu.outcome.rule, cpu.outcome.value = rule, 0
        cpu.outcome.verdict = lib.KVMSR_UPCALL if verdict is None else verdict
        for name, value in more.items():
            setattr(cpu.access, name, value)
        lib.kvmsr_ask(cpu)
        for _ in range(100):
            if not lib.kvmsr_await_answer(cpu, 20):
                return cpu.outcome.verdict, cpu.outcome.value
        return None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.questions.close()
        time.sleep(1.1)  # until its thread has seen that
        self.session.close()
        self.kvm.close()


def test_a_question_must_name_a_rule_that_covers_it():
    seen = []
    good, refused = (lib.KVMSR_VALUE, 7), (lib.KVMSR_FAULT, 0)
    rules = [
        Rule([0x35, 0x40], read=lambda access: seen.append(access) or 7),
        Rule(0x36, read=1, write="stop"),
        Rule(0x37, write=seen.append),
    ]
    first = lib.KVMSR_DEFAULTS
    with Asker(*rules) as asker:
        for _ in range(2):
            assert asker.ask(first, 0x35) == asker.ask(first, 0x40) == good
            for question in (
                {"rule": first, "index": 0xDEADBEEF},
                {"rule": first, "index": 0x35, "op": 1},
                {"rule": first, "index": 0x36},
                {"rule": first, "index": 0x35, "reason": 77},
                {"rule": first, "index": 0x35, "op": 200},
                {"rule": first + 1, "index": 0x36},
                {"rule": first + 3, "index": 0x37},
                {"rule": first + 4, "index": 0x37},
                {"rule": 0, "index": 0x35},
                {"rule": 0x35, "index": 0x35},
                {"rule": 0xFFFFFFFF, "index": 0x35},
                {"rule": first, "index": 0x35, "verdict": lib.KVMSR_STOP},
                {"rule": first + 2, "index": 0x35, "op": 1, "verdict": lib.KVMSR_STOP},
                {"rule": 0, "index": 0x35, "verdict": lib.KVMSR_STOP},
            ):
                assert asker.ask(**question) == refused, question
        for vm, vcpu in ((128, 0), (0xFFFFFFFF, 0), (0, 4096), (0, 0xFFFFFFFF)):
            asker.cpu.shared.vm, asker.cpu.shared.id = vm, vcpu
            assert asker.ask(first, 0x35) == refused
        asker.cpu.shared.vm = asker.cpu.shared.id = 0
        assert asker.ask(first, 0x35, vcpu=5) == good
        assert {access.vcpu for access in seen} == {0}  # what the question says is ignored
        assert {access.index for access in seen} == {0x35, 0x40}
        assert not asker.stopped
        assert asker.ask(first + 2, 0x36, 1, verdict=lib.KVMSR_STOP) is None
        assert len(asker.stopped) == 1


def test_nonsense_does_no_harm():
    """A bounded run; `python -m tests.attach.fuzz` goes on for longer."""
    fuzz.ASKED.clear()
    fuzzer = fuzz.Fuzzer(int(os.environ.get("KVMSR_SEED", "1")))
    try:
        fuzzer.run(10_000)
        fuzzer.work_once()
    finally:
        fuzzer.close()
    assert not fuzz.ASKED


# Floods the controller with accesses to be logged that it never made.
FLOOD = """
import mmap, os, struct, subprocess, sys, time
controller, block, tables = map(int, os.environ["KVMSR_BLOCK"].split(":"))
vmm = subprocess.Popen(sys.argv[3:])
time.sleep(1)
memory = mmap.mmap(block, 0)
first = int(sys.argv[1])
end = time.monotonic() + 3
while time.monotonic() < end:
    memory[first : first + 8] = struct.pack("Q", 1 << 63)  # head
    time.sleep(0.0001)
vmm.kill()
"""


def test_a_flood_of_events_keeps_nothing_from_ending(tmp_path, vmm):
    from kvmsr.native import ffi

    head = lib.kvmsr_block_size(0) + ffi.offsetof("struct kvmsr_vcpu", "head")
    words = [sys.executable, "-c", FLOOD, head, 0, *vmm, 1_000_000_000]
    begun = time.monotonic()
    times = os.times()
    subprocess.run(
        command(tmp_path, f'{CONSTANT}log = "always"\n', *words),
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert time.monotonic() - begun < 30
    used = os.times().children_user - times.children_user
    report = json.loads((tmp_path / "summary.json").read_text())
    assert report["totals"]["reads"] > COUNT
    assert used < 60


def test_a_handler_answers_on_while_nonsense_is_written_elsewhere(tmp_path, vmm):
    """Records of vCPUs that do not exist make no threads that burn CPUs."""
    words = [sys.executable, "-c", CROWD, *vmm, 50_000]
    done = subprocess.run(
        command(tmp_path, PYTHON, *words), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 7
    assert done.stdout.split()[0] == str(50_000 << 8)


CROWD = """
import mmap, os, struct, subprocess, sys, time
controller, block, tables = map(int, os.environ["KVMSR_BLOCK"].split(":"))
memory = mmap.mmap(block, 0)
vmm = subprocess.Popen(sys.argv[1:])
time.sleep(0.5)
memory[12:20] = struct.pack("II", 0xFFFFFFFF, 0xFFFFFFFF)  # n_vms, n_vcpus
sys.exit(vmm.wait())
"""
