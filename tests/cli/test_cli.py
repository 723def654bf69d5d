"""The command line, as its users meet it."""

import json
import os
import pty
import re
import resource
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import click
import pytest

from kvmsr.cli import cli
from tests.command import KVMSR, kvmsr, words_of
from tests.conftest import GUESTS, kvm_missing
from tests.machine.test_machine import ECHO

LIST = str(GUESTS / "list.elf")


# Help


def test_help_lists_each_command_with_the_first_line_of_its_own():
    out, _ = kvmsr("--help")
    listed = " ".join(out.split("Commands:")[1].split())
    for name in cli.list_commands(None):
        first = cli.get_command(None, name).help.split("\n\n")[0].split()
        assert " ".join([name, *first]) in listed


def commands():
    """Yield the words of each command, and of each command in a group."""
    for name in cli.list_commands(None):
        command = cli.get_command(None, name)
        yield name, command
        if isinstance(command, click.Group):
            yield from ((f"{name} {one}", inner) for one, inner in command.commands.items())


@pytest.mark.parametrize(("name", "command"), list(commands()))
def test_each_command_has_help_with_an_example(name, command):
    _, _, example = command.epilog.partition("Example")
    assert f"kvmsr {name.split()[0]} " in example
    assert all(
        parameter.help for parameter in command.params if isinstance(parameter, click.Option)
    )


def test_run_has_the_options_that_were_promised():
    out, _ = kvmsr("run", "--help")
    options = """backend policy cpus memory append initrd bios mode serial timeout json cpu
        cpu-feature"""
    for option in options.split():
        assert f"--{option}" in out


def test_the_version():
    out, _ = kvmsr("--version")
    assert re.fullmatch(r"kvmsr, version \d+\.\d+\.\d+\n", out)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    out, _ = kvmsr("completion", shell)
    assert "_KVMSR_COMPLETE" in out


def test_completion_completes():
    environment = os.environ | {
        "_KVMSR_COMPLETE": "bash_complete",
        "COMP_WORDS": "kvmsr run --cpu",
        "COMP_CWORD": "2",
    }
    out, _ = kvmsr(env=environment)
    assert "plain,--cpus" in out
    assert "plain,--cpu-feature" in out


# Running

TOLD = (
    "kvmsr: vCPU 0: read of MSR 0x35 (MSR_CORE_THREAD_COUNT): #GP(0) (defaults.unknown; unknown)\n"
)


def test_run_shows_the_console_and_then_the_table(tmp_path):
    (tmp_path / "p.toml").write_text("[[rule]]\nmsr = 'PAT'\nread = { value = 0x1122 }\n")
    out, err = kvmsr("run", LIST, "--append", "277 35", "--policy", tmp_path / "p.toml")
    assert err == TOLD
    console, table = out.split("MSR accesses")
    assert (
        console.replace("\r", "") == "rdmsr 0x00000277 = 0x0000000000001122\nrdmsr 0x00000035 #GP\n"
    )
    row = next(line for line in table.splitlines() if "0x277" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]][:8] == [
        "0x277", "IA32_PAT", "read", "1", "filter", "p.toml:1", "value", "0x1122",
    ]  # fmt: skip
    assert "2 reads, 0 writes, 1 fault in" in table
    assert "poweroff: the guest turned itself off (exit status 0)" in table
    assert "\x1b" not in out


def test_json_is_alone_on_standard_output():
    out, err = kvmsr("run", LIST, "--append", "35 35=1", "--json")
    report = json.loads(out)
    lines = err.replace("\r", "").splitlines(keepends=True)
    assert lines[:2] == ["rdmsr 0x00000035 #GP\n", TOLD]
    assert report["schema"] == 1
    assert report["backend"] in ("kvm", "soft")
    assert report["image"] == LIST
    assert report["policy"] == ""
    assert 0 <= report["wall_s"] < 60
    detail = "the guest turned itself off"
    assert report["exit"] == {"kind": "poweroff", "code": 0, "guest_code": 0, "detail": detail}
    assert report["totals"] == {"reads": 1, "writes": 1, "faults": 2}
    assert [(a["index"], a["op"], a["rule"]) for a in report["accesses"]] == [
        ("0x35", "read", "defaults.unknown"),
        ("0x35", "write", "defaults.unknown"),
    ]


def test_the_serial_line_goes_to_a_file(tmp_path):
    out, err = kvmsr("run", LIST, "--append", "35", "--serial", tmp_path / "log", "--json")
    assert json.loads(out)["exit"]["code"] == 0
    assert err == TOLD
    assert (tmp_path / "log").read_bytes() == b"rdmsr 0x00000035 #GP\r\n"


def test_the_guests_status_is_passed_on(tmp_path):
    (tmp_path / "code").write_bytes(b"\xb0\x03\xe6\xf4")
    kvmsr("run", tmp_path / "code", "--mode", "16", status=7)
    (tmp_path / "loop").write_bytes(b"\xeb\xfe")
    out, _ = kvmsr("run", tmp_path / "loop", "--mode", "16", "--timeout", "0.2", status=124)
    assert "timeout: 0.2 seconds are over" in out


def test_a_handler_that_raises_fails_the_run_and_is_named(tmp_path):
    (tmp_path / "mine.py").write_text("def broken(access):\n    return {}['nothing']\n")
    policy = tmp_path / "p.toml"
    policy.write_text('[[rule]]\nmsr = 0x35\nread = { python = "mine:broken" }\n')
    out, _ = kvmsr("run", LIST, "--append", "35", "--policy", policy, status=6)
    assert "rdmsr 0x00000035 #GP" in out
    assert "handler mine:broken failed (p.toml:1)" in out
    assert "raised KeyError: 'nothing'" in out
    report, _ = kvmsr("run", LIST, "--append", "35", "--policy", policy, "--json", status=6)
    assert json.loads(report)["handler_failures"]["count"] == 1


def test_features_are_hidden_from_the_guest():
    kvmsr("run", LIST, "--append", "35", "--cpu", "host", "--cpu-feature", "-x2apic")


def test_features_that_the_policy_answers_are_shown(tmp_path):
    policy = tmp_path / "p.toml"
    policy.write_text('[[rule]]\nmsr = [0xe7, 0xe8]\nread = "shadow"\nwrite = "shadow"\n')
    options = ("run", LIST, "--append", "e7", "--policy", policy)
    out, _ = kvmsr(*options, "--cpu-feature", "+aperfmperf")
    assert "note: CPUID shows aperfmperf, because the policy answers their MSRs" in out
    out, _ = kvmsr(*options, "--cpu-feature", "-aperfmperf")
    assert "CPUID" not in out
    _, err = kvmsr("run", LIST, "--cpu-feature", "+aperfmperf", status=2)
    assert "feature aperfmperf (CPUID.06H:ECX[0])" in err
    assert "it comes with rules that answer IA32_MPERF, IA32_APERF; to be had" in err


# What is wrong


WRONG = [
    (["run"], 2, "nothing to boot"),
    (["run", "nope"], 3, "cannot read image nope: No such file"),
    (["run", "/etc/hostname"], 3, "--mode 16, 32 or 64"),
    (["run", LIST, "--policy", "nope.toml"], 3, "nope.toml: cannot read the policy"),
    (["run", LIST, "--cpus", "0"], 2, "0 CPUs"),
    (["run", LIST, "--cpus", "x"], 2, "not a valid integer"),
    (["exec", "-policy", "x.toml", "--", "true"], 2, "no option -policy; did you mean --policy?"),
    (["exec", "--polcy=x.toml", "--", "true"], 2, "did you mean --policy?"),
    (["exec", "-enable-kvm", "--", "true"], 2, "own options come after --"),
    (["run", LIST, "--memory", "lots"], 2, "write 256M or 2G"),
    (["run", LIST, "--memory", "1000T"], 2, "2 MiB to 1 TiB"),
    (["run", LIST, "--memory", "1023G"], 4, "ask for less"),
    (["run", LIST, "--backend", "qemu"], 2, "'qemu' is not one of"),
    (["run", LIST, "--mode", "8"], 2, "'8' is not one of"),
    (["run", LIST, "--timeout", "-1"], 2, "give seconds, more than 0"),
    (["run", LIST, "--timeout", "nan"], 2, "give seconds, more than 0"),
    (["run", LIST, "--cpu-feature", "-x2apci"], 2, "did you mean x2apic"),
    (["run", LIST, "--serial", "/nope/log"], 2, "--serial /nope/log: cannot be written"),
    (["run", LIST, "--option-rom", "x"], 2, "--bios"),
    (["run", LIST, "--bios", LIST, "--json"], 3, "does not have Linux's setup header"),
    (["run", LIST, "-policy", "x"], 2, "No such option '-policy'. Did you mean '--policy'?"),
    (["run", LIST, "-m", "512M"], 2, "No such option '-m'."),
    (["fly"], 2, "No such command 'fly'"),
]


@pytest.mark.parametrize(("words", "status", "piece"), WRONG, ids=lambda value: str(value)[:40])
def test_what_is_wrong_is_reported_in_one_line(words, status, piece):
    out, err = kvmsr(*words, status=status)
    assert out == ""
    assert piece in err
    if err.startswith("kvmsr: "):
        assert err.count("\n") == 1


def test_a_bad_policy_names_line_and_key(tmp_path):
    if kvm_missing():
        pytest.skip(f"needs /dev/kvm: {kvm_missing()}")
    policy = tmp_path / "p.toml"
    policy.write_text("\n[[rule]]\nmsr = 'IA32_PTA'\nread = 'fault'\n")
    _, err = kvmsr("run", LIST, "--policy", policy, status=3)
    wrong = "rule[0].msr: no MSR is called 'IA32_PTA'; did you mean IA32_PAT"
    assert err.startswith(f"kvmsr: {policy}:3: {wrong}")


def test_output_that_nobody_reads_ends_quietly(tmp_path):
    (tmp_path / "chatter").write_bytes(b"\xb0\x41\xe6\xe9\xeb\xfa")  # for ever
    process = subprocess.Popen(
        [*KVMSR, "run", str(tmp_path / "chatter"), "--mode", "16", "--timeout", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout.read(10) == b"A" * 10
    process.stdout.close()
    assert process.wait(30) == 1
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_run_with_its_summary(tmp_path, number):
    (tmp_path / "code").write_bytes(b"\xb0\x41\xe6\xe9\xeb\xfe")
    process = subprocess.Popen(
        [*KVMSR, "run", str(tmp_path / "code"), "--mode", "16"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
    )
    assert process.stdout.read(1) == b"A"
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"stop: interrupted (exit status 130)" in out
    assert err == b""


# On a terminal


class Terminal:
    """A command on a pseudo-terminal."""

    def __init__(self, *words):
        try:
            self.master, slave = pty.openpty()
        except OSError as error:
            pytest.skip(f"needs pseudo-terminals: {error}")
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            words_of(*words),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: __import__("fcntl").ioctl(0, termios.TIOCSCTTY, 0),
        )
        self.seen = b""

    def expect(self, piece, seconds=30):
        deadline = time.monotonic() + seconds
        while piece not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, self.seen
            if select.select([self.master], [], [], left)[0]:
                self.seen += os.read(self.master, 4096)

    def type(self, data):
        os.write(self.master, data)

    def wait(self):
        while self.process.poll() is None:
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 4096)
        while select.select([self.master], [], [], 0.1)[0]:
            self.seen += os.read(self.master, 4096)
        after = termios.tcgetattr(self.slave)
        os.close(self.slave)
        os.close(self.master)
        assert after == self.before, "the terminal is not as it was"
        return self.process.returncode


def test_what_is_typed_reaches_the_guest_at_once_and_is_echoed_by_it_alone(tmp_path):
    (tmp_path / "echo").write_bytes(b"\xb0\x3e\xe6\xe9" + ECHO)  # a prompt first
    terminal = Terminal("run", tmp_path / "echo", "--mode", "16", "--backend", "soft")
    terminal.expect(b">")
    terminal.type(b"ab")
    terminal.expect(b">ab")
    terminal.type(b"\n")
    assert terminal.wait() == 1
    assert terminal.seen.startswith(b">ab\r\n")
    assert b"\x1b[" in terminal.seen  # colour, because it is a terminal


def test_input_that_the_guest_does_not_read_is_left_where_it_is(tmp_path):
    (tmp_path / "loop").write_bytes(b"\xeb\xfe")
    with Path("/dev/zero").open() as zero:
        done = subprocess.run(
            [*KVMSR, "run", str(tmp_path / "loop"), "--mode", "16", "--timeout", "2", "--json"],
            stdin=zero,
            capture_output=True,
            check=False,
            timeout=60,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)),
        )
    assert done.returncode == 124, done.stderr


def test_ctrl_c_ends_the_run_and_restores_the_terminal(tmp_path):
    (tmp_path / "code").write_bytes(b"\xb0\x3e\xe6\xe9\xeb\xfe")
    terminal = Terminal("run", tmp_path / "code", "--mode", "16")
    terminal.expect(b">")
    terminal.type(b"\x03")
    assert terminal.wait() == 130
    assert b"interrupted" in terminal.seen
    assert b"Traceback" not in terminal.seen


def test_a_long_run_whose_console_is_elsewhere_shows_that_it_lives(tmp_path):
    (tmp_path / "code").write_bytes(b"\xeb\xfe")
    terminal = Terminal(
        "run", tmp_path / "code", "--mode", "16", "--serial", tmp_path / "log", "--timeout", "4"
    )
    terminal.expect(b"running, 2 s")
    assert terminal.wait() == 124


# Doctor and demo


def test_doctor_tells_what_is_there():
    status = 4 if kvm_missing() else 0
    out, _ = kvmsr("doctor", status=status)
    assert "ignore_msrs: " in out
    report, _ = kvmsr("doctor", "--json", status=status)
    found = json.loads(report)
    assert found["ok"] == (not kvm_missing())
    names = [check["name"] for check in found["checks"]]
    assert names[:6] == [
        "kernel", "soft backend", "native core", "vendor module", "ignore_msrs", "/dev/kvm",
    ]  # fmt: skip
    for check in found["checks"]:
        assert check["status"] in ("ok", "warn", "fail")
        assert f"{check['name']}: {check['value'][:40]}" in out
        if check["status"] != "ok":
            assert check["remedy"] or check["name"] == "ignore_msrs"
    if not kvm_missing():
        assert {"KVM_CAP_X86_USER_SPACE_MSR", "KVM_CAP_X86_MSR_FILTER", "probe guest"} <= set(names)


def test_the_demo_shows_policy_guest_and_table():
    out, _ = kvmsr("demo")
    assert "boot a kernel with --kernel" in out
    assert "[[rule]]" in out
    assert "rdmsr 0x00000035 = 0x0000000000020004" in out
    assert "MSR_CORE_THREAD_COUNT" in out


# Without KVM


def test_without_kvm_it_says_why_and_what_to_do(tmp_path):
    """In a process that finds no device."""
    script = f"""
import kvmsr.backend.host as host
real = host.HostBackend.__init__
host.HostBackend.__init__ = lambda self: real(self, {str(tmp_path / "kvm")!r})
from kvmsr.cli import main
main()
"""
    for words, status in ((["run", LIST, "--backend", "kvm"], 4), (["demo"], 0), (["doctor"], 4)):
        done = subprocess.run(
            [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == status
        assert "No such file or directory" in done.stdout + done.stderr
        assert "load kvm_intel or kvm_amd" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
