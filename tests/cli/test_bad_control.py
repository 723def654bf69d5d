"""kvmsr ctl and wrap with targets and files that are not what they should be: one clear line."""

import os
import subprocess
import sys
import time

import pytest

from kvmsr.cli._parameters import CTL_COMMANDS
from kvmsr.cli.ctl import command
from kvmsr.errors import UsageError
from kvmsr.session import control
from tests.command import call, kvmsr, words_of
from tests.conftest import need
from tests.counting import COUNTING, SHADOW, status

NOBODY = 65534

NAME = f"counting-{os.getpid()}"  # other runs of the tests may be under way


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "policy.toml").write_text(SHADOW)
    return tmp_path


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Return the process of a guest that counts, on the soft backend; no test changes it."""
    folder = tmp_path_factory.mktemp("running")
    (folder / "counting.bin").write_bytes(COUNTING)
    (folder / "policy.toml").write_text(SHADOW)
    words = words_of(
        "run", folder / "counting.bin", "--mode", "16", "--memory", "2M", "--backend", "soft",
        "--policy", folder / "policy.toml", "--json", "--name", NAME,
    )  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        for _ in range(300):
            if status(process.pid):
                break
            time.sleep(0.1)
        yield process
        process.kill()


def refused(*words, code=2):
    """Check that a command fails with one line, and return the line."""
    done = call(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.count("\n") == 1
    assert "bug in kvmsr" not in done.stderr
    return done.stderr


def unchanged(process):
    """Check that the run goes on under its policy."""
    before = status(process.pid)
    for _ in range(200):
        after = status(process.pid)
        assert (after["replacements"], process.poll()) == (0, None)
        if after["accesses"] > before["accesses"]:
            return
        time.sleep(0.02)
    raise AssertionError("the guest does not go on")


COMMANDS = [["policy", "preset:quiet"], ["status"], ["save", "x"], ["stop"]]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_process_that_has_ended(folder, words):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    line = refused("ctl", process.pid, *words)
    assert line == f"kvmsr: there is no process {process.pid}; kvmsr ctl lists what runs\n"


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_process_that_is_not_kvmsr_s(start, words):
    process = start([need("sleep"), "60"])
    line = refused("ctl", process.pid, *words)
    assert f"process {process.pid} is neither a kvmsr run or exec nor a VMM" in line
    assert process.poll() is None


@pytest.mark.parametrize("target", ["0", "00", "99999999999999999999", "4194305"])
def test_a_number_that_no_process_has(target):
    assert "there is no process" in refused("ctl", target, "stop")


def test_a_name_that_nothing_has(running):
    line = refused("ctl", "countin", "stop")
    assert f"no run of yours has the name 'countin'; did you mean '{NAME}'?" in line
    assert "no run of yours has the name" in refused("ctl", "x\n\x1b[31m", "stop")
    unchanged(running)


def test_what_to_do_is_missing_or_unknown(running):
    assert "say what to do" in refused("ctl", running.pid)
    done = call("ctl", running.pid, "polcy", "x.toml")
    assert done.returncode == 2
    assert "No such command 'polcy'" in done.stderr
    unchanged(running)


@pytest.mark.parametrize("name", ["4711", "a b", "-x", "é", "x" * 65, "a/b"])
def test_a_name_that_is_none(name):
    line = refused("run", "x", f"--name={name}")
    assert "a name begins with a letter and has up to 64 letters" in line


def test_a_run_that_was_forgotten(folder):
    for words in (["stop"], ["policy", folder / "policy.toml"], ["undo"]):
        assert f"ctl {words[0]}: of which run?" in refused("ctl", *words)
    assert "a command of kvmsr ctl" in refused("run", "x", "--name=stop")
    assert sorted(command.commands) == list(CTL_COMMANDS)


def test_there_is_no_policy_to_return_to(running):
    line = refused("ctl", NAME, "undo")
    assert line == f"kvmsr: {NAME}: there is no policy to return to: none has been replaced\n"
    unchanged(running)


POLICIES = {
    "missing": (None, "cannot read the policy: No such file"),
    "binary": (bytes(range(256)), "not a text file"),
    "state": (b'{"vms": []}', "invalid TOML"),
    "truncated": (SHADOW.encode()[:20], "invalid TOML"),
    "newer": (b"[policy]\nsurprise = 1\n", "surprise: unknown key"),
    "module": (b'[[rule]]\nmsr = 1\nread = { python = "gone:f" }\n', "cannot import module 'gone'"),
}


@pytest.mark.parametrize("how", POLICIES)
def test_a_policy_that_is_none(folder, running, how):
    data, why = POLICIES[how]
    file = folder / "bad.toml"
    if data is not None:
        file.write_bytes(data)
    line = refused("ctl", running.pid, "policy", file, code=3)
    assert str(file) in line
    assert why in line
    unchanged(running)


def test_a_policy_that_is_a_folder_a_device_or_a_preset_that_is_not_there(folder, running):
    for file, why in [
        (folder, "a directory"),
        ("/dev/zero", "a device"),
        ("preset:quite", "did you mean 'quiet'?"),
    ]:
        assert why in refused("ctl", running.pid, "policy", file, code=3)
    unchanged(running)


STATES = {
    "missing": (lambda data: None, "cannot read the state: No such file"),
    "binary": (lambda data: bytes(range(256)), "not a state"),
    "foreign": (lambda data: b'{"rows": []}', "not a state"),
    "truncated": (lambda data: data[:-20], "not a state"),
    "newer": (lambda data: data.replace(b'"version": 1', b'"version": 7'), "version 7"),
    "other": (
        lambda data: data.replace(b'"conditions": {}', b'"conditions": {"0.read": 3}'),
        "its conditions differ",
    ),
}


@pytest.mark.parametrize("how", STATES)
def test_a_state_that_is_none(folder, running, how):
    change, why = STATES[how]
    file = folder / "state"
    kvmsr("ctl", running.pid, "save", file)
    data = change(file.read_bytes())
    file.unlink()
    if data is not None:
        file.write_bytes(data)
    line = refused("ctl", running.pid, "load", file, code=3 if how == "other" else 2)
    assert str(file) in line
    assert why in line
    unchanged(running)


def test_a_place_for_no_state(folder, running):
    for file in (folder / "gone/state", "/proc/state"):
        assert "cannot write the state" in refused("ctl", running.pid, "save", file)
    unchanged(running)


# Another user, and another's socket


def as_nobody(function):
    """Return what *function* returns in a process of another user."""
    if os.geteuid():
        pytest.skip("needs root")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(write, str(function()).encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)  # whatever happens: the child must not go on with the tests
    os.close(write)
    with os.fdopen(read) as file:
        answer = file.read()
    os.waitpid(child, 0)
    return answer


def test_another_user_s_run(running):
    def asks():
        try:
            control.ask(str(running.pid), {"do": "stop"})
        except UsageError as error:
            return error

    def asks_all_the_same():
        peer = control._opened(running.pid)
        return control._exchange(peer, {"do": "stop"}, 10, "")

    assert as_nobody(asks) == (
        f"process {running.pid} belongs to the user root: only that user, and root, may control it"
    )
    assert as_nobody(asks_all_the_same) == (
        "{'error': 'only the user who started it, and root, may control it'}"
    )
    assert as_nobody(lambda: list(control.runs())) == "[]"
    unchanged(running)


LISTENS = """
import os, socket, sys
s = socket.socket(socket.AF_UNIX)
s.bind(f"\\0kvmsr-{sys.argv[1] or os.getpid()}")
s.listen()
print("listens", flush=True)
while True:
    peer, _ = s.accept()
    peer.recv(9999)
    peer.send(sys.argv[2].encode())
    peer.close()
"""


@pytest.mark.parametrize("answer", ["", "nonsense\n", "[1]\n", "{}", '{"error": "\x1b[31mno"}\n'])
def test_a_run_that_answers_nonsense(start, answer):
    process = start([sys.executable, "-c", LISTENS, "", answer], stdout=subprocess.PIPE)
    process.stdout.readline()
    line = refused("ctl", process.pid, "undo")
    assert f"process {process.pid}: " in line
    assert "\x1b" not in line
    kvmsr("ctl")


def test_a_process_that_poses_as_another(start):
    other = start([need("sleep"), "60"])
    process = start([sys.executable, "-c", LISTENS, str(other.pid), "{}"], stdout=subprocess.PIPE)
    process.stdout.readline()
    line = refused("ctl", other.pid, "stop")
    assert f"process {other.pid} is neither a kvmsr run or exec" in line


# wrap


def test_wrap_refuses_what_is_no_vmm(folder):
    true = need("true")
    with open(true, "rb") as file:
        data = file.read()
    for name, content in [
        ("empty", b""),
        ("text", b"hello\n"),
        ("binary", bytes(range(256))),
        ("head", data[:20]),
        ("half", data[: len(data) // 2]),
        ("lost", b"#!/gone/away\n"),
    ]:
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o755)
        if name == "half" and call("wrap", folder / name, "-o", folder / "o").returncode == 0:
            (folder / "o").unlink()  # its headers are whole: only starting it can tell
            continue
        assert "kvmsr: " in refused("wrap", folder / name, "-o", folder / "script")
    assert "no such program" in refused("wrap", folder / "gone", "-o", folder / "script")
    assert not (folder / "script").exists()


@pytest.mark.parametrize("how", POLICIES)
def test_wrap_refuses_what_is_no_policy(folder, how):
    data, why = POLICIES[how]
    file = folder / "bad.toml"
    if data is not None:
        file.write_bytes(data)
    words = ["wrap", need("true"), "-o", folder / "script", "--policy", file]
    assert why in refused(*words, code=3)
    assert not (folder / "script").exists()


def test_wrap_refuses_to_write_over_what_is_not_its_own(folder):
    script = folder / "script"
    for file in (folder / "policy.toml", "/dev/null"):
        assert "it exists, and kvmsr wrap has not written it" in refused(
            "wrap", need("true"), "-o", file
        )
    assert (folder / "policy.toml").read_text() == SHADOW
    kvmsr("wrap", need("true"), "-o", script)
    kvmsr("wrap", need("true"), "-o", script, "--name", "web1", "--reload")
    assert "exec --name web1 --reload -- " in script.read_text()
    assert script.stat().st_mode & 0o777 == 0o755


def test_wrap_refuses_a_state_that_is_something_else(folder):
    words = ["wrap", need("true"), "-o", folder / "script"]
    line = refused(*words, "--state", folder / "policy.toml")  # the script would remove it
    assert "this is not a state that kvmsr has saved" in line
    assert "there is no folder" in refused(*words, "--state", folder / "gone/state")
    assert not (folder / "script").exists()
