"""`kvmsr exec` with real VMMs: a small one of kvmsr's own, and QEMU."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from kvmsr import native
from tests.command import call, words_of
from tests.conftest import GUESTS, need, peer

pytestmark = [
    pytest.mark.kvm,
    pytest.mark.skipif(not native.available(), reason=f"needs {native.why_not()}"),
]

COUNT = 2000
CONSTANT = "[[rule]]\nmsr = 0x35\nread = { value = 0x1200 }\n"
PYTHON = '[[rule]]\nmsr = 0x35\nread = { python = "counting:up" }\n'
UP = """
from pathlib import Path

count = 0

def up(access):
    global count
    count += 1
    if count == 20:
        Path(__file__).with_name("begun").touch()
    return count << 8
"""


def command(tmp_path, policy, *vmm):
    (tmp_path / "counting.py").write_text(UP)
    (tmp_path / "policy.toml").write_text(policy)
    return words_of(
        "exec", "--policy", tmp_path / "policy.toml", "--json", "--summary",
        tmp_path / "summary.json", "--", *vmm,
    )  # fmt: skip


def run(tmp_path, policy, *vmm):
    done = subprocess.run(
        command(tmp_path, policy, *vmm), capture_output=True, text=True, timeout=120, check=False
    )
    return done, json.loads((tmp_path / "summary.json").read_text())


def test_the_table_answers(tmp_path, vmm):
    done, report = run(tmp_path, CONSTANT, *vmm, COUNT)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.split()[0] == str(0x1200)
    assert report["exit"]["kind"] == "vmm"
    [row] = report["accesses"]
    assert (row["index"], row["count"], row["last_value"]) == ("0x35", COUNT, "0x1200")


@pytest.mark.parametrize("how", ["high", "many", "moved", "fork"])
@pytest.mark.parametrize("policy", [CONSTANT, PYTHON], ids=["table", "handler"])
def test_no_descriptor_escapes(tmp_path, vmm, how, policy):
    done, report = run(tmp_path, policy, *vmm, COUNT, how)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.split()[0] == str(0x1200 if policy is CONSTANT else COUNT << 8)
    assert report["totals"]["reads"] == COUNT


def test_without_a_rule_the_guest_faults_as_without_kvmsr(tmp_path, vmm):
    alone = subprocess.run([*vmm, "1"], capture_output=True, text=True, check=False)
    done, _ = run(tmp_path, "", *vmm, 1)
    assert (done.returncode, done.stdout) == (alone.returncode, alone.stdout)


@pytest.mark.parametrize("own", ["deny", "watch"])
def test_where_no_rule_decides_the_vmms_own_filter_does(tmp_path, vmm, own):
    """As without kvmsr, even if a rule makes the merged filter deny other MSRs, too."""
    alone = subprocess.run([*vmm, "1", own], capture_output=True, text=True, check=False)
    # An MSR that KVM knows, so that the filter has to deny it for the rule.
    other = "[[rule]]\nmsr = 0x277\nread = { value = 1 }\n"
    for policy in ("", other):
        done, _ = run(tmp_path, policy, *vmm, 1, own)
        assert (done.returncode, done.stdout) == (alone.returncode, alone.stdout)
    done, _ = run(tmp_path, CONSTANT, *vmm, 1, own)  # a rule is above it
    assert done.stdout.split()[0] == str(0x1200)


@pytest.mark.parametrize("storm", [[], ["storm"]], ids=["calm", "storm"])
def test_a_handler_is_asked_once_for_each_access(tmp_path, vmm, storm):
    done, report = run(tmp_path, PYTHON, *vmm, COUNT, *storm)
    eax, kicks = map(int, done.stdout.split())
    assert eax == COUNT << 8
    assert report["totals"]["reads"] == COUNT
    assert not storm or kicks > 10


def handler(tmp_path, body):
    (tmp_path / "mine.py").write_text(f"import os\n\ndef h(access):\n    {body}\n")
    return '[[rule]]\nmsr = 0x35\nread = { python = "mine:h" }\n'


def test_an_access_passes_few_rooms(tmp_path, vmm):
    """C in the VMM, then attach, session, native and dispatch in the controller."""
    body = f"""
    frame = __import__("sys")._getframe()
    with open("{tmp_path}/rooms", "a") as file:
        while frame:
            print(frame.f_globals["__name__"], file=file)
            frame = frame.f_back
    return 7"""
    run(tmp_path, handler(tmp_path, body.strip()), *vmm, 1)
    names = {
        line.split(".")[1] for line in (tmp_path / "rooms").read_text().split() if "kvmsr." in line
    }
    assert names == {"attach", "native", "dispatch"}


def test_a_failed_handler_shows_in_the_exit_status_where_the_vmm_ended_well(tmp_path, vmm):
    good = tmp_path / "good"  # the VMM ends with 7, so one that ends with 0 is needed
    good.write_text(f"#!/bin/sh\n{' '.join(map(str, vmm))} {COUNT}\nexit 0\n")
    good.chmod(0o755)
    done, report = run(tmp_path, handler(tmp_path, "raise ValueError('no')"), good)
    assert (done.returncode, report["exit"]["code"], report["exit"]["guest_code"]) == (6, 6, 0)
    done, report = run(tmp_path, handler(tmp_path, "raise ValueError('no')"), *vmm, 1)
    assert (done.returncode, report["exit"]["code"], report["exit"]["guest_code"]) == (7, 7, 7)
    assert report["handler_failures"]["count"] >= 1


def test_a_handler_that_interrupts_ends_the_vmm(tmp_path, vmm):
    done, report = run(tmp_path, handler(tmp_path, "raise KeyboardInterrupt"), *vmm, COUNT)
    assert (done.returncode, done.stderr) == (130, "")
    assert report["exit"]["detail"] == "interrupted by a handler"


def test_a_handler_that_holds_the_interpreter_keeps_nothing_from_ending(tmp_path, vmm, start):
    hang = f"open('{tmp_path}/begun', 'w').close(); return sum(range(10**12))"
    policy = CONSTANT.replace("0x35", "0x36") + handler(tmp_path, hang)
    begun = start(command(tmp_path, policy, *vmm, COUNT))
    wait_for(tmp_path / "begun", begun)
    begun.terminate()
    assert begun.wait(20) == 6
    report = json.loads((tmp_path / "summary.json").read_text())
    assert "a handler held Python's interpreter" in report["exit"]["detail"]


def test_a_handler_that_ends_the_controller_does_not_look_like_success(tmp_path, vmm):
    policy = '[defaults]\non_error = "ignore"\n' + handler(tmp_path, "os._exit(0)")
    done, report = run(tmp_path, policy, *vmm, COUNT)
    assert done.returncode == 6
    assert done.stdout.split()[0] == "0"  # the guest went on, as on_error says
    assert report["exit"]["detail"] == "a handler ended the process with status 0"
    assert report["totals"]["reads"] == COUNT


def test_a_log_that_fails_is_noted_and_the_guest_goes_on(tmp_path, vmm):
    words = command(tmp_path, CONSTANT + 'log = "always"\n', *vmm, COUNT)
    words[words.index("--json") : words.index("--json")] = ["--log", "/dev/full"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    report = json.loads((tmp_path / "summary.json").read_text())
    assert (done.returncode, done.stderr) == (7, "")
    assert report["accesses"][0]["count"] == COUNT
    assert [note for note in report["notes"] if note.startswith("the log failed")] == [
        "the log failed, later accesses are not in it: --log /dev/full: No space left on device"
    ]


def test_a_note_says_what_the_vmms_guest_did_not_see(tmp_path, vmm):
    """That guest reads 0x35 only; whether another one would look for APERF is up to CPUID."""
    pair = '[[rule]]\nmsr = [0xe7, 0xe8]\nread = "shadow"\nwrite = "shadow"\n'
    _, report = run(tmp_path, CONSTANT + pair, *vmm, COUNT)
    assert report["notes"] == [
        "no guest looked for MSRs that the policy answers and CPUID announces by aperfmperf"
        " (CPUID.06H:ECX[0]): whether a guest sees that is up to the VMM"
    ]


def test_a_vmm_is_started_from_where_it_was_named(tmp_path, vmm):
    program, image = vmm
    (tmp_path / "here").mkdir()
    (tmp_path / "here/ls").symlink_to(program)  # not the ls of PATH
    words = command(tmp_path, CONSTANT, "./ls", image, COUNT)
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path / "here"
    )
    assert (done.returncode, done.stdout.split()[0]) == (7, str(0x1200))


@pytest.mark.parametrize("policy", [CONSTANT, PYTHON], ids=["alone", "supervised"])
def test_the_vmm_inherits_every_descriptor(tmp_path, policy):
    read, write = os.pipe()
    os.write(write, b"from outside")
    program = [sys.executable, "-c", f"import os; print(os.read({read}, 99).decode())"]
    with os.fdopen(read), os.fdopen(write, "w"):
        done = subprocess.run(
            command(tmp_path, policy, *program),
            capture_output=True, text=True, timeout=60, check=False, pass_fds=(read,),
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "from outside\n")


LOCKS = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
if libc.mlockall(3):  # MCL_CURRENT | MCL_FUTURE, as QEMU's -overcommit mem-lock=on
    sys.exit("may not lock memory")
vm = libc.ioctl(os.open("/dev/kvm", os.O_RDWR), 0xAE01, 0)
assert libc.ioctl(vm, 0xAE41, 0) > vm > 0
print(next(line.split()[1] for line in open("/proc/self/status") if line[:8] == "RssShmem"))
"""


def test_a_vmm_that_locks_its_memory_does_not_get_all_of_ours(tmp_path):
    done, report = run(tmp_path, CONSTANT, sys.executable, "-c", LOCKS)
    if "may not lock memory" in done.stderr:
        pytest.skip("needs a limit of locked memory that allows a gigabyte")
    assert done.returncode == 0
    assert len(report["vms"]) == 1
    assert int(done.stdout) < 64 << 10  # KiB


def test_stop_ends_the_vmm(tmp_path, vmm):
    done, report = run(tmp_path, '[[rule]]\nmsr = 0x35\nread = "stop"\n', *vmm, COUNT)
    assert done.returncode == 6
    assert report["exit"]["kind"] == "stop"
    assert "policy.toml:1 stops the run at a read of MSR 0x35" in report["exit"]["detail"]


def test_stop_ends_a_vmm_that_a_wrapper_script_started(tmp_path, vmm):
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(
        f"#!/bin/sh\n{' '.join(map(str, vmm))} 100000000\necho $? > {tmp_path}/status\n"
    )
    wrapper.chmod(0o755)
    done, report = run(tmp_path, '[[rule]]\nmsr = 0x35\nread = "stop"\n', wrapper)
    assert (done.returncode, report["exit"]["kind"]) == (6, "stop")


def test_the_summary_comes_when_the_last_process_has_ended(tmp_path, vmm):
    """As with -daemonize: the process that was started ends at once, here before there is a VM."""
    later = f"sleep 1; exec {' '.join(map(str, [*vmm, 30_000]))}"
    begin = f"import subprocess; subprocess.Popen(['/bin/sh', '-c', {later!r}])"
    done, report = run(tmp_path, CONSTANT, sys.executable, "-c", begin)
    assert done.returncode == 0
    assert report["totals"]["reads"] == 30_000


def test_a_vmm_in_the_background_gets_the_signal(tmp_path, vmm, start):
    begin = f"import subprocess; subprocess.Popen({list(map(str, [*vmm, 100_000_000]))!r})"
    begun = start(command(tmp_path, PYTHON, sys.executable, "-c", begin))
    wait_for(tmp_path / "begun", begun)
    begun.terminate()
    assert begun.wait(20) == 0
    report = json.loads((tmp_path / "summary.json").read_text())
    assert 20 <= report["totals"]["reads"] < 100_000_000


def test_several_vmms_at_once(tmp_path, vmm):
    both = " & ".join(" ".join(map(str, [*vmm, count])) for count in (1000, 3000))
    _, report = run(tmp_path, CONSTANT, "/bin/sh", "-c", f"{both}; wait")
    assert report["totals"]["reads"] == 4000


def test_the_vmm_is_killed(tmp_path, vmm, start):
    begun = start(command(tmp_path, PYTHON, *vmm, 100_000_000))
    wait_for(tmp_path / "begun", begun)
    [controller] = children(begun.pid)  # of the supervisor
    [child] = children(controller)
    os.kill(child, signal.SIGKILL)
    assert begun.wait(20) == 128 + signal.SIGKILL
    report = json.loads((tmp_path / "summary.json").read_text())
    assert "SIGKILL" in report["exit"]["detail"]
    assert report["totals"]["reads"] > 10


def test_the_controller_is_killed_and_the_guest_ends_well(tmp_path, vmm, start):
    policy = '[defaults]\non_error = "ignore"\n' + PYTHON
    begun = start(command(tmp_path, policy, *vmm, 400_000), stdout=subprocess.PIPE, text=True)
    wait_for(tmp_path / "begun", begun)
    begun.kill()
    begun.wait()
    with begun.stdout:  # which ends with the VMM
        assert begun.stdout.read() == "0 0\n"


def wait_for(path, process):
    """Wait until a process, which must not end, has created a file."""
    for _ in range(600):
        if path.exists():
            return
        assert process.poll() is None
        time.sleep(0.05)
    raise AssertionError(f"no {path}")


def children(pid):
    task = f"/proc/{pid}/task/{pid}/children"
    with open(task) as file:
        return [int(word) for word in file.read().split()]


def test_qemu_runs_under_it(tmp_path, qemu, start):
    (tmp_path / "image").write_bytes((GUESTS / "loop.bin").read_bytes())
    bios = peer("seabios", "usr/share/seabios/bios.bin")
    monitor = "-monitor none -serial none -display none -nodefaults -no-reboot".split()
    program = [*qemu, "-accel", "kvm", "-bios", bios, *monitor]
    begun = start(command(tmp_path, CONSTANT, *program))
    time.sleep(3)
    begun.terminate()  # which is passed on
    assert begun.wait(20) == 0
    report = json.loads((tmp_path / "summary.json").read_text())
    assert "no VM" not in "".join(report["notes"])
    assert report["exit"]["kind"] == "vmm"


@pytest.mark.peer
def test_models_count_the_vcpus_that_the_vmm_has(tmp_path, qemu):
    bios = peer("seabios", "usr/share/seabios/bios.bin")
    policy = '[[rule]]\nmsr = 0x35\nread = { model = "topology.core-thread-count" }\n'
    program = [
        *qemu, "-accel", "kvm", "-bios", bios, "-m", "64", "-smp", "3", "-kernel",
        GUESTS / "list.elf", "-append", "35", "-serial", f"file:{tmp_path}/serial",
        *"-monitor none -display none -nodefaults -no-reboot".split(),
        "-device", "isa-debug-exit,iobase=0xf4",
    ]  # fmt: skip
    run(tmp_path, policy, *program)
    assert (tmp_path / "serial").read_text().strip().endswith("= 0x0000000000030003")


def test_a_static_program_is_refused(tmp_path):
    source = tmp_path / "one.c"
    source.write_text("int main(void) { return 0; }")
    built = subprocess.run([need("cc"), "-static", "-o", tmp_path / "one", source], check=False)
    if built.returncode:
        pytest.skip("needs a static C library")
    done = call("exec", "--", tmp_path / "one")
    assert done.returncode == 2
    assert "statically linked" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_handler_answers_a_vmm_that_went_to_the_background(tmp_path, vmm):
    """The supervisor sees the first process end, and must not expect the controller to end then."""
    later = f"sleep 6; exec {' '.join(map(str, [*vmm, COUNT]))}"
    begin = f"import subprocess; subprocess.Popen(['/bin/sh', '-c', {later!r}])"
    done, report = run(tmp_path, PYTHON, sys.executable, "-c", begin)
    assert done.returncode == 0
    assert report["totals"]["reads"] == COUNT


def test_a_summary_that_cannot_be_written_is_found_out_before_the_vmm_runs(tmp_path, vmm):
    done = call("exec", "--summary", tmp_path / "no/such", "--", *vmm, 1)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == f"kvmsr: --summary {tmp_path}/no/such: cannot be written: No such file or directory\n"
    )
