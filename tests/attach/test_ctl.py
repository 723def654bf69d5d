"""kvmsr ctl and --state: replace the policy and keep registers while a VMM runs."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvmsr import native
from tests.attach.qmp import Monitor
from tests.command import call, words_of
from tests.counting import BAD, COUNTING, MSR, SHADOW

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]


def counting_bios(folder):
    image = bytearray(b"\xf4" * 65536)
    image[: len(COUNTING)] = COUNTING
    image[0xFFF0:0xFFF3] = b"\xe9\x0d\x00"  # jmp 0
    (folder / "bios.bin").write_bytes(image)
    return folder / "bios.bin"


@pytest.fixture
def bios(tmp_path):
    return counting_bios(tmp_path)


class Running:
    """QEMU under a policy, and its monitor."""

    def __init__(self, folder, qemu, bios, *options, state=None, pass_fds=()):
        monitor = folder / "qmp"
        monitor.unlink(missing_ok=True)
        words = words_of(
            "exec", "--policy", folder / "policy.toml",
            "--summary", folder / "summary.json", "--json",
            *(["--state", state] if state else []), "--",
            *qemu, "-accel", "kvm", "-bios", bios, "-m", "16", "-display", "none", "-nodefaults",
            "-no-reboot", "-device", "isa-debug-exit,iobase=0x501,iosize=1",
            "-qmp", f"unix:{monitor},server=on,wait=off", *options,
        )  # fmt: skip
        self.process = subprocess.Popen(words, pass_fds=pass_fds)
        self.monitor = Monitor(monitor)

    def ctl(self, *words, check=True):
        return ctl(self.process.pid, *words, check=check)

    def runs_on(self):
        """Return whether the guest finds its registers as it left them."""
        before = self.ctl("summary")
        try:
            self.monitor.ask("cont")
            time.sleep(0.3)
            after = self.ctl("summary")
            assert json.loads(after.stdout)["totals"] != json.loads(before.stdout)["totals"]
            return self.monitor.ask("query-status")["running"]
        except (EOFError, OSError, AssertionError):
            return False

    def quit(self):
        self.monitor.ask("quit")
        assert self.process.wait(20) == 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.monitor.close()
        self.process.terminate()  # which ends QEMU; if kvmsr were killed, it would go on
        self.process.wait(20)


def ctl(pid, *words, check=True):
    done = call("ctl", pid, *words)
    assert not check or not done.returncode, done.stderr
    return done


@pytest.mark.peer
def test_snapshots_of_qemu_and_the_registers_beside_them(tmp_path, qemu, bios):
    (tmp_path / "policy.toml").write_text(SHADOW)
    disk, saved, kept = tmp_path / "disk", tmp_path / "saved.json", tmp_path / "kept.json"
    snapshot = {"tag": "one", "vmstate": "disk", "devices": ["disk"]}
    with Running(tmp_path, qemu, bios, state=kept) as vm:
        vm.monitor.make_disk(disk)
        time.sleep(0.3)
        for _ in range(5):  # wherever it is stopped, between or within accesses
            vm.monitor.ask("stop")
            assert vm.runs_on()
        vm.monitor.ask("stop")
        vm.monitor.job("snapshot-save", **snapshot)
        vm.ctl("save", saved)
        assert vm.runs_on()
        vm.monitor.ask("stop")
        vm.monitor.job("snapshot-load", **snapshot)
        vm.ctl("load", saved)
        assert vm.runs_on()
        vm.quit()
    (holder, index, count), other = json.loads(saved.read_text())["vms"][0]["shadows"]["values"]
    assert (holder, index, other[1]) == (0, MSR, MSR + 1)
    assert json.loads(kept.read_text())["vms"][0]["shadows"]["values"][0][2] > count > 100

    opens = [
        "-blockdev", f"driver=file,node-name=file,filename={disk}",
        "-blockdev", "driver=qcow2,node-name=disk,file=file", "-S",
    ]  # fmt: skip
    with Running(tmp_path, qemu, bios, *opens, state=saved) as vm:
        vm.monitor.job("snapshot-load", **snapshot)
        assert vm.runs_on()
        vm.quit()
    with Running(tmp_path, qemu, bios, *opens) as vm:  # its registers were not kept
        vm.monitor.job("snapshot-load", **snapshot)
        assert not vm.runs_on()
        assert vm.process.wait(20) == BAD << 1 | 1


@pytest.mark.peer
def test_another_policy_for_a_guest_that_runs(tmp_path, qemu, bios):
    (tmp_path / "policy.toml").write_text(SHADOW)
    (tmp_path / "quiet.toml").write_text(f'{SHADOW}log = "never"\n')
    (tmp_path / "wrong.toml").write_text("[[rule]]\nmsr = 0x1b0\n")
    (tmp_path / "wide.toml").write_text(
        f'{SHADOW}[[rule]]\nmsr = "0xc0000080-0xc0000084"\nread = "kernel"\nwrite = "ignore"\n'
    )
    (tmp_path / "end.toml").write_text(
        f'[[rule]]\nmsr = [{MSR}, {MSR + 1}]\nread = {{ value = 1 }}\nwrite = "ignore"\n'
    )
    with Running(tmp_path, qemu, bios) as vm:
        time.sleep(0.3)
        own = Path(f"/proc/{vm.process.pid}/task/{vm.process.pid}/children")
        [vmm] = own.read_text().split()
        ctl(vmm, "policy", tmp_path / "quiet.toml")  # the VMM's process will do
        wrong = vm.ctl("policy", tmp_path / "wrong.toml", check=False)
        assert (wrong.returncode, wrong.stderr.count("\n")) == (3, 1)
        assert "wrong.toml:1" in wrong.stderr
        for _ in range(5):
            vm.ctl("policy", tmp_path / "wide.toml")
            vm.ctl("policy", tmp_path / "quiet.toml")
        assert vm.runs_on()  # its registers are what they were
        vm.ctl("policy", tmp_path / "end.toml")
        assert vm.process.wait(20) == BAD << 1 | 1
    report = json.loads((tmp_path / "summary.json").read_text())
    assert {row["rule"] for row in report["accesses"]} >= {"quiet.toml:1", "end.toml:1"}
    assert report["policy"].endswith("end.toml")


@pytest.mark.peer
def test_a_policy_and_back_and_the_end(tmp_path, qemu, bios):
    (tmp_path / "policy.toml").write_text(SHADOW)
    (tmp_path / "quiet.toml").write_text(f'{SHADOW}log = "never"\n')
    with Running(tmp_path, qemu, bios, "-smp", "2") as vm:
        time.sleep(0.3)
        vm.ctl("policy", tmp_path / "quiet.toml")
        assert 'log = "never"' in vm.ctl("show").stdout
        vm.ctl("undo")
        assert "log =" not in vm.ctl("show").stdout
        assert vm.runs_on()
        status = json.loads(vm.ctl("status", "--json").stdout)
        assert (status["pid"], status["kind"], status["backend"]) == (vm.process.pid, "exec", "kvm")
        assert (status["vms"], status["vcpus"], status["replacements"]) == (1, 2, 2)
        vm.ctl("stop")
        assert vm.process.wait(1) == 6  # stop has waited for the end
    report = json.loads((tmp_path / "summary.json").read_text())
    assert (report["exit"]["kind"], report["exit"]["detail"]) == ("stop", "stopped by kvmsr ctl")


@pytest.mark.peer
def test_models_are_as_in_the_state_when_the_guest_begins(tmp_path, qemu, bios):
    (tmp_path / "own.py").write_text(
        "from kvmsr.dispatch.models import Register, RegisterModel\n"
        f"class Own(RegisterModel):\n    counts = Register([{MSR}, {MSR + 1}])\n"
    )
    own = '{ model = "own:Own" }'
    (tmp_path / "policy.toml").write_text(
        f"[[rule]]\nmsr = [{MSR}, {MSR + 1}]\nread = {own}\nwrite = {own}\n"
    )
    kept = tmp_path / "kept.json"
    with Running(tmp_path, qemu, bios, state=kept) as vm:
        time.sleep(0.5)
        vm.quit()
    [values] = json.loads(kept.read_text())["vms"][0]["models"].values()
    assert len(values["values"]) == 2
    with Running(tmp_path, qemu, bios, "-S", state=kept) as vm:
        assert not vm.runs_on()  # it begins to count at 0
        assert vm.process.wait(20) == BAD << 1 | 1


@pytest.mark.peer
def test_registers_are_reset(tmp_path, qemu, bios):
    (tmp_path / "policy.toml").write_text(SHADOW)
    with Running(tmp_path, qemu, bios) as vm:
        time.sleep(0.2)
        vm.ctl("reset")
        assert vm.process.wait(20) == BAD << 1 | 1


def test_nobody_is_there_to_ask(start):
    pid = start(["sleep", "60"]).pid
    done = ctl(pid, "reset", check=False)
    assert done.returncode == 2
    assert f"process {pid} is neither a kvmsr run or exec nor a VMM" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_state_file_that_is_none(tmp_path):
    (tmp_path / "state").write_text('{"vms": [{"shadows": 3}]}')
    done = call("exec", "--state", tmp_path / "state", "--", sys.executable, "-c", "")
    assert done.returncode == 2
    assert "this is not a state that kvmsr has saved" in done.stderr
    assert done.stderr.count("\n") == 1
