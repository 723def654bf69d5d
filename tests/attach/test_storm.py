"""
Every access is answered once, whatever happens at the same time.

    KVMSR_STORM=10000000 pytest tests/attach/test_storm.py

is the long way: so many accesses, and at least 1,000 replacements of the policy.
"""

import json
import os
import signal
import threading
import time
from contextlib import suppress

import pytest

from kvmsr import native
from kvmsr.session.control import ask
from tests.attach import storming
from tests.attach.storming import PER_ROUND, VCPUS

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]

ACCESSES = int(os.environ.get("KVMSR_STORM", "100000"))
LONG = ACCESSES >= 10_000_000
MOST_GROWTH = 4 << 20  # bytes, from a quarter of the way to the end


class Storm:
    """Replaces the policy, stops and continues the VMM, and watches memory, until it ends."""

    def __init__(self, folder, begun):
        self.folder = folder
        self.begun = begun
        self.replaced = self.stopped = 0
        self.memory = []
        self.failed = []
        self.controller, self.vmm = self._find()
        works = (self._replace, self._stop, self._watch)
        self.threads = [threading.Thread(target=self._repeat, args=(work,)) for work in works]
        for thread in self.threads:
            thread.start()

    def _find(self):
        for _ in range(600):
            found = storming.descendants(self.begun.pid)
            if len(found) == 2 and storming.marked(f"KVMSR_BLOCK={self._mark(found[1])}"):
                return found
            time.sleep(0.05)
        output = (self.folder / "output").read_text()
        raise AssertionError(f"no VMM: {output}")

    def _mark(self, pid):
        with suppress(OSError), open(f"/proc/{pid}/environ") as file:
            for entry in file.read().split("\0"):
                if entry.startswith("KVMSR_BLOCK="):
                    return entry.partition("=")[2]
        return "none"

    def _repeat(self, work):
        while self.begun.poll() is None:
            try:
                work()
            except Exception as error:
                if not (self.folder / "result").read_text():
                    self.failed.append(repr(error))
                return

    def _replace(self):
        name = ("other", "one")[self.replaced % 2]
        ask(str(self.begun.pid), {"do": "policy", "file": str(self.folder / f"{name}.toml")})
        self.replaced += 1
        time.sleep(0.02)

    def _stop(self):
        os.kill(self.vmm, signal.SIGSTOP)
        time.sleep(0.005)
        os.kill(self.vmm, signal.SIGCONT)
        self.stopped += 1
        time.sleep(0.1)

    def _watch(self):
        keys = "RssAnon", "RssShmem"
        self.memory.append([storming.status(pid, *keys) for pid in (self.controller, self.vmm)])
        time.sleep(0.2)

    def growth(self):
        """Return by how much the memory of controller and VMM has grown, in bytes."""
        first, last = self.memory[len(self.memory) // 4], self.memory[-1]
        return [sum(late) - sum(early) for early, late in zip(first, last, strict=True)]


@pytest.mark.slow
def test_every_access_is_answered_once_in_a_storm(tmp_path, start):
    vmm = storming.build(tmp_path)
    storming.write_policies(tmp_path)
    rounds = ACCESSES // (PER_ROUND * VCPUS)
    words = [*vmm, rounds, tmp_path / "result", "storm"]
    with open(tmp_path / "output", "w") as output:
        begun = start(storming.command(tmp_path, *words), stdout=output, stderr=output)
    storm = Storm(tmp_path, begun)
    status = begun.wait(3600)
    for thread in storm.threads:
        thread.join()
    vcpus = storming.counted(tmp_path)
    report = storming.assert_same(tmp_path, vcpus)
    counts = [vcpu.counts for vcpu in vcpus]
    print(
        json.dumps(
            {
                "accesses": sum(sum(one.values()) for one in counts),
                "kicks": [vcpu.kicks for vcpu in vcpus],
                "replaced": storm.replaced,
                "stopped": storm.stopped,
                "seconds": report["wall_s"],
                "growth": storm.growth(),
                "memory": storm.memory[:: max(len(storm.memory) // 10, 1)],
            }
        )
    )
    assert [(vcpu.left, vcpu.bad, vcpu.first_bad, vcpu.gone) for vcpu in vcpus] == [
        (0, 0, [0, 0, 0], 0)
    ] * VCPUS
    assert all(one["sequence"] == rounds for one in counts)
    failed = sum(one[kind] for one in counts for kind in storming.FAILING)
    assert report["totals"]["faults"] == report["handler_failures"]["count"] == failed
    assert status == 6  # handlers have failed
    assert (report["losses"], report["exit"]["guest_code"]) == ([], 0)
    assert not storm.failed
    assert min(vcpu.kicks for vcpu in vcpus) > 0
    assert storm.stopped > 0
    assert storm.replaced >= (1000 if LONG else 5)
    assert max(storm.growth()) < MOST_GROWTH


@pytest.mark.slow
def test_no_cpu_is_burnt_while_the_guest_asks_nothing(tmp_path, start):
    vmm = storming.build(tmp_path)
    storming.write_policies(tmp_path)
    begun = start(storming.command(tmp_path, *vmm, 50, tmp_path / "result", "stay"))
    for _ in range(600):
        if storming.has_result(tmp_path):
            break
        time.sleep(0.05)
    time.sleep(0.5)
    pids = [begun.pid, *storming.descendants(begun.pid)]
    assert len(pids) == 3  # supervisor, controller, VMM
    before = [ticks(pid) for pid in pids]
    time.sleep(2)
    used = [late - early for early, late in zip(before, map(ticks, pids), strict=True)]
    print(used)
    assert max(used) <= 0.1 * os.sysconf("SC_CLK_TCK"), used


def ticks(pid):
    """Return the CPU time of a process, user and system."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
