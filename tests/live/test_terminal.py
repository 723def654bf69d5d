"""kvmsr run --live and kvmsr top in a real terminal, tmux, and without one."""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.command import call, kvmsr
from tests.conftest import need
from tests.live.guest import run_words, wait_for_accesses, wait_until


class Terminal:
    """A shell in a terminal."""

    def __init__(self, folder, columns, lines):
        self._folder = Path(tempfile.mkdtemp(prefix="kvmsr-"))  # a socket's path must be short
        self("new-session", "-d", "-x", columns, "-y", lines, "-c", folder, "bash --norc")

    def __call__(self, *words):
        tmux = [need("tmux"), "-f", "/dev/null", "-S", self._folder / "tmux", *words]
        done = subprocess.run(list(map(str, tmux)), capture_output=True, text=True, check=True)
        return done.stdout

    def enter(self, *words, **environment):
        """Enter a command; its exit status is on the screen when it has ended."""
        given = " ".join(f"{name}={value}" for name, value in environment.items())
        line = f"{given} {shlex.join(map(str, words))}; echo status=$?"
        self("send-keys", "-l", line)
        self("send-keys", "Enter")

    def press(self, *keys):
        self("send-keys", *keys)

    def screen(self):
        return self("capture-pane", "-p")

    def shows(self, text):
        try:
            wait_until(lambda: text in self.screen())
        except AssertionError:
            raise AssertionError(f"no {text!r} in\n{self.screen()}") from None

    def pid(self):
        """Return the process that the shell has started."""
        [shell] = self("list-panes", "-F", "#{pane_pid}").split()
        children = Path(f"/proc/{shell}/task/{shell}/children")
        return wait_until(lambda: [int(word) for word in children.read_text().split()])[0]

    def close(self):
        with suppress(subprocess.CalledProcessError):  # it has ended with its session
            self("kill-server")
        shutil.rmtree(self._folder)


@pytest.fixture
def terminal(tmp_path):
    need("tmux")
    made = []

    def open_(columns=100, lines=40):
        made.append(Terminal(tmp_path, columns, lines))
        return made[-1]

    yield open_
    for one in made:
        one.close()


def live(folder, *options):
    """Return the command that runs the guest in the view, with its output there."""
    words = list(run_words(folder, "soft", *options, "--live"))
    at = words.index("--serial")
    del words[at : at + 2]
    return words


def child_of(pid):
    [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def has_ended(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_run_is_watched_and_stopped_and_then_its_table_is_there(tmp_path, terminal):
    view = terminal()
    view.enter(*live(tmp_path))
    view.shows("0x1b0 IA32_ENERGY_PERF_BIAS")
    view.shows("aaaaaaaaaa")  # what the guest sends
    view("resize-window", "-x", 70, "-y", 20)
    view.shows("IA32_ENERGY_PERF_BIAS")
    view("resize-window", "-x", 100, "-y", 40)
    view.press("Enter")
    view.shows("as the policy says")
    view.press("Enter")
    view.shows("kernel")
    view.press("Down", "Enter")
    wait_until(lambda: "kernel" not in view.screen())
    view.shows("Reads                   value")
    time.sleep(0.5)  # as slowly as a person
    view.press("-l", "0x62")
    view.shows("Value, or initial value 0x62")
    view.press("Enter")
    view.shows("bbbbbbbbbb")
    view.press("u")
    view.shows("undone")
    view.press("o")
    wait_until(lambda: "bbbbbbbbbb" not in view.screen())
    view.press("x")
    view.shows("Stop (y)")
    view.press("y")
    view.shows("ended: stop: stopped by kvmsr ctl")
    view.press("q")
    view.shows("status=6")
    screen = view.screen()
    assert "MSR accesses" in screen
    assert "stop: stopped by kvmsr ctl (exit status 6)" in screen
    assert "Traceback" not in screen


def test_leaving_a_tiny_and_dumb_terminal_ends_the_run_as_ctrl_c_does(tmp_path, terminal):
    view = terminal(20, 5)
    view.enter(*live(tmp_path), TERM="dumb")
    view.shows("0x1b0")
    view.press("C-c")
    view.shows("Leave")
    view.press("y")
    view.shows("status=130")


def test_the_view_stays_when_the_guest_has_ended(tmp_path, terminal):
    view = terminal()
    view.enter(*live(tmp_path, "--timeout", "1"))
    view.shows("ended: timeout: 1 seconds are over")
    view.shows("0x1b0 IA32_ENERGY_PERF_BIAS")
    view.press("down", "s")
    view.shows("by count")
    view.press("w")
    view.shows("Write the policy in force")
    view.press("Enter")
    wait_until((tmp_path / "letters-live.toml").exists)
    view.press("q")
    view.shows("status=124")
    assert "MSR accesses" in view.screen()


def test_a_run_under_a_supervisor(tmp_path, terminal):
    (tmp_path / "mine.py").write_text("def a(access): return 97\n")
    view = terminal()
    words = live(tmp_path)
    (tmp_path / "letters.toml").write_text('[[rule]]\nmsr = 0x1b0\nread = { python = "mine:a" }\n')
    view.enter(*words)
    view.shows("aaaaaaaaaa")
    view.shows("0x1b0 IA32_ENERGY_PERF_BIAS")
    os.kill(view.pid(), signal.SIGTERM)
    view.shows("status=130")
    assert "MSR accesses" in view.screen()


def test_a_run_that_is_killed(tmp_path, terminal):
    view = terminal()
    view.enter(*live(tmp_path))
    view.shows("0x1b0 IA32_ENERGY_PERF_BIAS")
    os.kill(child_of(view.pid()), signal.SIGKILL)
    view.shows("ended: its process was killed")
    view.press("q")
    view.shows("status=137")
    assert "Traceback" not in view.screen()


def test_a_view_that_is_killed_takes_the_run_with_it(tmp_path, terminal):
    view = terminal()
    view.enter(*live(tmp_path))
    view.shows("0x1b0 IA32_ENERGY_PERF_BIAS")
    run = child_of(view.pid())
    os.kill(view.pid(), signal.SIGKILL)
    wait_until(lambda: has_ended(run))


@pytest.mark.parametrize("options", [[], ["--reload"]], ids=["", "--reload"])
def test_nothing_is_left_when_the_terminal_is_closed(tmp_path, terminal, options):
    view = terminal()
    view.enter(*live(tmp_path, *options))
    view.shows("0x1b0 IA32_ENERGY_PERF_BIAS")
    pids = view.pid(), child_of(view.pid())
    view("kill-session")
    for pid in pids:
        wait_until(lambda pid=pid: has_ended(pid))


def test_what_is_wrong_with_a_guest_is_one_line_and_no_view(tmp_path, terminal):
    view = terminal()
    words = live(tmp_path)
    (tmp_path / "letters.bin").unlink()
    view.enter(*words)
    view.shows("status=3")
    assert "kvmsr: " in view.screen()
    assert "Traceback" not in view.screen()
    assert "IA32_ENERGY_PERF_BIAS" not in view.screen()


def test_top_of_a_run_of_another_terminal(tmp_path, terminal, start):
    process = start(run_words(tmp_path, "soft", "--name", "watched"))
    wait_for_accesses(process.pid)
    view = terminal()
    view.enter(*run_words(tmp_path, "soft")[:3], "top", "watched")
    view.shows("0x1b0 IA32_ENERGY_PERF_BIAS")
    view.shows("watched run")
    process.kill()
    view.shows("ended: the run has ended")
    view.press("q")
    view.shows("status=0")


def test_without_a_terminal_a_line_says_so(tmp_path):
    for words in (["top"], ["top", "1"], live(tmp_path)[3:]):
        _, err = kvmsr(*words, status=2)
        assert "needs a terminal" in err
        assert err.count("\n") == 1
    _, err = kvmsr(*live(tmp_path, "--json")[3:], status=2)
    assert "--live shows a table at the end, and --json is no table" in err


def test_top_has_an_example_and_completes_runs(tmp_path, start):
    process = start(run_words(tmp_path, "soft", "--name", "completed"))
    wait_for_accesses(process.pid)
    assert "kvmsr top web1" in call("top", "--help").stdout
    given = {"_KVMSR_COMPLETE": "bash_complete", "COMP_WORDS": "kvmsr top comp", "COMP_CWORD": "2"}
    assert "completed" in call(env=os.environ | given).stdout
