"""
The controller or the VMM is killed, at random moments: guests end or go on as documented, and
nothing is left behind.

    KVMSR_KILLS=100 pytest tests/attach/test_kills.py

is the long way: so many of each.
"""

import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from kvmsr import native
from tests.attach import storming
from tests.attach.storming import ASKING, RULES, VCPUS

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]

KILLS = int(os.environ.get("KVMSR_KILLS", "6"))
ROUNDS = 300
KILLED = 128 + signal.SIGKILL
# Which process is killed, and under which policy: without handlers there is no supervisor.
CONTROLLERS = [("controller", RULES | ASKING), ("front", RULES | ASKING), ("front", RULES)]
PATIENCE = 60


class Run:
    """One run of the storm's VMM under ``kvmsr exec``, and what belongs to it."""

    def __init__(self, folder, start, vmm, rules):
        folder.mkdir()
        self.folder = folder
        self.mark = f"KVMSR_TEST_RUN={folder}"
        storming.write_policies(folder, rules)
        self.rounds = ROUNDS if rules != RULES else 3 * ROUNDS  # without handlers it is faster
        words = storming.command(folder, *vmm, self.rounds, folder / "result")
        with open(folder / "output", "w") as output:
            environment = dict([*os.environ.items(), tuple(self.mark.split("=", 1))])
            self.process = start(words, stdout=output, stderr=output, env=environment)
        self.front = self.process.pid
        self.pids = {self.front}
        self.inodes = set()

    def find(self, who):
        """Wait for one of the run's processes, and return it; 0 if there will be none."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self.process.poll() is None:
            found = [self.front, *storming.descendants(self.front)]
            match who:
                case "front":
                    return self.front
                case "controller" if len(found) > 1:
                    return found[1]
                case "vmm" if name(found[-1]) == "storm":
                    return found[-1]
            time.sleep(0.001)
        return 0

    def kill(self, who, after):
        """Kill one of the run's processes some seconds after it began."""
        pid = self.find(who)
        time.sleep(after)
        self.pids |= set(storming.marked(self.mark))
        for other in self.pids:
            self.inodes |= inodes(other)
        if pid and self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self):
        """Wait until no process of the run is left, and return the status of the first."""
        status = self.process.wait(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if not storming.marked(self.mark):
                return status
            time.sleep(0.02)
        raise AssertionError(f"orphans: {storming.marked(self.mark)}")

    def assert_nothing_is_left(self):
        for path in Path("/proc").glob("[1-9]*"):
            assert not self.inodes & inodes(int(path.name)), path
        sockets = Path("/proc/net/unix").read_text().split()
        assert not {f"@kvmsr-{pid}" for pid in self.pids} & set(sockets)
        assert not list(Path("/dev/shm").glob("*kvmsr*"))

    def vcpus(self):
        """Return what the guests have counted; None if the VMM had not been started."""
        if not (self.folder / "result").exists():
            return None
        assert storming.has_result(self.folder), (self.folder / "output").read_text()
        return storming.counted(self.folder)


def name(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def inodes(pid):
    """Return the files of kvmsr's shared memory that a process holds or has mapped."""
    found = set()
    with suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if str(path.readlink()).startswith("/memfd:kvmsr "):
                    found.add(path.stat().st_ino)
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            if "/memfd:kvmsr " in line:
                found.add(int(line.split()[4]))
    return found


def moments(seed, longest):
    """Return random moments, in seconds."""
    chance = random.Random(seed)
    return [chance.uniform(0, longest) for _ in range(KILLS)]


def undisturbed(folder, start, vmm):
    """Return the seconds that a run takes, all in all and from the VMM's start."""
    begun = time.monotonic()
    run = Run(folder / "undisturbed", start, vmm, RULES | ASKING)
    run.find("vmm")
    between = time.monotonic()
    assert run.wait() == 6  # handlers fail
    assert all(vcpu.bad == vcpu.gone == 0 for vcpu in run.vcpus())
    return time.monotonic() - begun, time.monotonic() - between


def assert_went_on(run, rules):
    """Assert that the guests came to their end, and found no register or constant wrong."""
    vcpus = run.vcpus()
    if vcpus is None:
        return "before the VMM"
    assert [(vcpu.left, vcpu.bad, vcpu.first_bad) for vcpu in vcpus] == [(0, 0, [0, 0, 0])] * VCPUS
    for vcpu in vcpus:
        handled = sum(vcpu.counts[kind] for kind in ("sequence", "numbered", "sleeps"))
        assert vcpu.gone <= handled
        assert rules != RULES or vcpu.gone == handled
    return "meanwhile" if any(vcpu.gone for vcpu in vcpus) else "after the end"


@pytest.mark.slow
def test_the_controller_is_killed_and_the_guests_go_on(tmp_path, start):
    vmm = storming.build(tmp_path)
    longest, _ = undisturbed(tmp_path, start, vmm)
    seed = random.randrange(1 << 32)
    found, seen = [], set()
    for number, after in enumerate(moments(seed, longest)):
        who, rules = CONTROLLERS[number % len(CONTROLLERS)]
        what = f"seed {seed}, number {number}: {who} after {after:.3f} s"
        print(what, flush=True)
        run = Run(tmp_path / str(number), start, vmm, rules)
        run.kill(who, after)
        status = run.wait()
        when = assert_went_on(run, rules)
        run.assert_nothing_is_left()
        seen |= run.inodes
        found.append(when)
        if who == "controller" and when == "meanwhile":
            assert status == 6, what
            report = storming.assert_same(run.folder, run.vcpus())
            assert report["exit"]["detail"] == "a handler ended the process by SIGKILL"
        assert status in (0, 6, KILLED, -signal.SIGKILL), what
    print({when: found.count(when) for when in found})
    assert seen  # otherwise this test would look for nothing


@pytest.mark.slow
def test_the_vmm_is_killed_and_kvmsr_ends_with_it(tmp_path, start):
    vmm = storming.build(tmp_path)
    _, longest = undisturbed(tmp_path, start, vmm)
    seed = random.randrange(1 << 32)
    found, seen = [], set()
    for number, after in enumerate(moments(seed, longest)):
        what = f"seed {seed}, number {number}: the VMM after {after:.3f} s"
        print(what, flush=True)
        rules = (RULES | ASKING, RULES)[number % 2]
        run = Run(tmp_path / str(number), start, vmm, rules)
        run.kill("vmm", after)
        status = run.wait()
        run.assert_nothing_is_left()
        seen |= run.inodes
        report = storming.summary(run.folder)
        ended = storming.has_result(run.folder)
        found.append("after the end" if ended else "meanwhile")
        if status == KILLED:
            assert "SIGKILL" in report["exit"]["detail"], what
        else:
            assert ended, what
            assert status == (6 if rules != RULES else 0), what
        accesses = report["totals"]["reads"] + report["totals"]["writes"]
        assert accesses <= run.rounds * (storming.PER_ROUND + 1) * VCPUS, what
    print({when: found.count(when) for when in found})
    assert seen  # otherwise this test would look for nothing
