"""The view, driven by textual's pilot, on runs that go on: what the user sees, and the guest."""

import asyncio
import itertools
import json
import signal
import time

import pytest
from textual.widgets import Input, Select

from kvmsr.live import app as module
from kvmsr.live.app import LiveApp
from kvmsr.live.board import Sort
from kvmsr.live.client import Ended
from kvmsr.live.screens import Change, Choose, Confirm, SaveAs
from kvmsr.session.control import ask
from tests.cli.test_terminal import EVIL, TAME
from tests.command import kvmsr, words_of
from tests.live.guest import MSR, run_words, says, wait_for_accesses
from tests.live.test_board import row


def live(target, steps, *, size=(100, 30), **options):
    """Show a run while *steps*, a coroutine function, does something with the view."""

    async def show():
        app = LiveApp(str(target), **options)
        async with app.run_test(size=size, notifications=True) as pilot:
            await steps(app, pilot)
        return app

    return asyncio.run(show())


async def until(pilot, holds, seconds=20):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "this does not become true"
        await pilot.pause(0.05)


def text_of(app):
    """Return what is on the screen."""
    app.screen.refresh()
    lines = app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in line) for line in lines)


async def shows(app, pilot, text):
    await until(pilot, lambda: text in text_of(app))


@pytest.fixture
def running(tmp_path, start):
    process = start(run_words(tmp_path, "soft", "--log", tmp_path / "log"))
    wait_for_accesses(process.pid)
    return process


async def change(app, pilot, value, **words):
    """Change the MSR that is selected by the dialog."""
    await until(pilot, lambda: app.said_of_selected() is not None)
    await pilot.press("enter")
    await until(pilot, lambda: isinstance(app.screen, Change))
    for key, word in words.items():
        app.screen.query_one(f"#{key}", Select).value = word
    app.screen.query_one("#value", Input).value = value
    await pilot.press("ctrl+s")
    await until(pilot, lambda: not isinstance(app.screen, Change))


def test_an_msr_is_seen_with_rate_values_fields_and_accesses(running):
    async def steps(app, pilot):
        line = await_line(app)
        await until(pilot, lambda: (found := line()) and found.history.rate(time.monotonic()) > 0)
        await shows(app, pilot, "0x1b0 IA32_ENERGY_PERF_BIAS")
        for text in ("letters.toml:2", "0x61", "reads: value 0x61", "writes: ignore"):
            await shows(app, pilot, text)
        await shows(app, pilot, "3:0 bias")
        await shows(app, pilot, "reserved  0x60")
        await until(pilot, lambda: text_of(app).count(" read  0x61 letters.toml:2") > 3)
        await shows(app, pilot, "first at RIP 0x7c06")
        assert f"{running.pid} run" in text_of(app)

    live(running.pid, steps)


def await_line(app):
    return lambda: app.board.lines.get(MSR)


def test_the_guest_sees_a_change_its_undoing_and_a_run_under_the_policy_that_was_written(
    tmp_path, running, start, monkeypatch
):
    monkeypatch.chdir(tmp_path)

    async def steps(app, pilot):
        says(tmp_path, "a")
        await change(app, pilot, "0x62", read="value")
        await asyncio.to_thread(says, tmp_path, "b")
        await shows(app, pilot, "* 0x1b0")
        await shows(app, pilot, "+ 1 change")
        await change(app, pilot, "99", read="shadow", write="shadow")
        await asyncio.to_thread(says, tmp_path, "c")
        await pilot.press("u")
        await asyncio.to_thread(says, tmp_path, "b")
        await pilot.press("w")
        await until(pilot, lambda: isinstance(app.screen, SaveAs))
        await pilot.press("enter")
        await until(pilot, (tmp_path / "letters-live.toml").exists)
        await pilot.press("u")
        await asyncio.to_thread(says, tmp_path, "a")
        await until(pilot, lambda: "* 0x1b0" not in text_of(app))
        await pilot.press("u")
        await shows(app, pilot, "nothing was changed here")

    live(running.pid, steps)
    written = (tmp_path / "letters-live.toml").read_text()
    assert written == (
        f"""\
[policy]
extends = ["{tmp_path}/letters.toml"]

# IA32_ENERGY_PERF_BIAS (0x1b0): A hint to prefer performance or to save energy.
[[rule]]
msr = 0x1b0
read = {{ value = 0x62 }}
"""
    )
    kvmsr("policy", "check", tmp_path / "letters-live.toml")
    (tmp_path / "again").mkdir()
    again = start(run_words(tmp_path / "again", "soft", "--policy", tmp_path / "letters-live.toml"))
    wait_for_accesses(again.pid)
    says(tmp_path / "again", "b")


def test_a_file_is_not_overwritten_without_asking(tmp_path, running):
    file = tmp_path / "mine.toml"
    file.write_text("# mine\n")

    async def write(app, pilot, answer):
        await pilot.press("w")
        await until(pilot, lambda: isinstance(app.screen, SaveAs))
        app.screen.query_one("#file", Input).value = str(file)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Confirm))
        await pilot.press(answer)
        await until(pilot, lambda: not isinstance(app.screen, Confirm))

    async def steps(app, pilot):
        await until(pilot, lambda: app.answer is not None)
        for answer in ("n", "escape", "enter"):  # Enter is on No
            await write(app, pilot, answer)
        await pilot.pause(0.5)
        assert file.read_text() == "# mine\n"
        await write(app, pilot, "y")
        await until(pilot, lambda: "extends" in file.read_text())

    live(running.pid, steps)
    assert sorted(path.name for path in tmp_path.iterdir() if "toml" in path.name) == [
        "letters.toml", "mine.toml",
    ]  # fmt: skip


def test_the_log_is_switched_on_and_off(tmp_path, running):
    log = tmp_path / "log"

    async def steps(app, pilot):
        await until(pilot, lambda: app.said_of_selected() is not None)
        await pilot.press("l")
        await until(pilot, lambda: log.read_text().count("\n") > 3)
        await until(pilot, lambda: app.said_of_selected()["given"] == {"log": "always"})
        await pilot.press("l")
        await until(pilot, lambda: not app.answer["changed"])

    live(running.pid, steps)
    says(tmp_path, "a")


def test_what_is_wrong_is_said_and_changes_nothing(tmp_path, running):
    async def steps(app, pilot):
        await until(pilot, lambda: app.said_of_selected() is not None)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, Change))
        app.screen.query_one("#read", Select).value = "value"
        app.screen.query_one("#value", Input).value = "[red]zzz"
        await pilot.press("ctrl+s")
        await shows(app, pilot, "[red]zzz is not a value: write 0x35 or 53")
        await pilot.press("escape")
        app._change(MSR, "x", {"read": "[bold]ignroe"})
        await shows(app, pilot, "[bold]ignroe")
        assert ask(str(running.pid), {"do": "status"})["replacements"] == 0

    live(running.pid, steps, size=(120, 40))


def test_another_policy_in_between_is_not_undone(tmp_path, running):
    (tmp_path / "other.toml").write_text("")

    async def steps(app, pilot):
        await change(app, pilot, "0x62", read="value")
        await asyncio.to_thread(says, tmp_path, "b")
        kvmsr("ctl", running.pid, "policy", tmp_path / "other.toml")
        await pilot.press("u")
        await shows(app, pilot, "the policy was replaced since")
        await change(app, pilot, "0x63", read="value")
        await pilot.press("u")
        await until(pilot, lambda: app.answer["replacements"] == 4)
        await pilot.press("u")
        await shows(app, pilot, "nothing was changed here")

    live(running.pid, steps)
    shown = json.loads(kvmsr("ctl", running.pid, "show", "--json")[0])
    assert shown["source"] == f"{tmp_path}/other.toml"


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_run_that_ends_is_said_to_have_ended(tmp_path, running, how):
    async def steps(app, pilot):
        await change(app, pilot, "0x62", read="value")
        await asyncio.to_thread(says, tmp_path, "b")
        if how == "killed":
            running.kill()
        else:
            await pilot.press("x")
            await until(pilot, lambda: isinstance(app.screen, Confirm))
            await pilot.press("y")
        await shows(app, pilot, "ended: the run has ended")
        running.wait(30)
        for key in ("enter", "x", "s", "down", "l", "u"):
            await pilot.press(key)
        await shows(app, pilot, "0x1b0 IA32_ENERGY_PERF_BIAS")
        app._do_write(tmp_path / "after.toml", replace=False)
        await until(pilot, (tmp_path / "after.toml").exists)
        await pilot.press("q")

    assert live(running.pid, steps).return_code == 0
    assert "read = { value = 0x62 }" in (tmp_path / "after.toml").read_text()


def test_a_run_that_does_not_answer_holds_nobody_up(running):
    async def steps(app, pilot):
        await until(pilot, lambda: app.answer is not None)
        running.send_signal(signal.SIGSTOP)
        await pilot.press("s", "u", "l")
        assert app._sort is Sort.COUNT
        await pilot.press("q")

    begun = time.monotonic()
    live(running.pid, steps)
    assert time.monotonic() - begun < 15


def test_one_of_several_runs_is_chosen(tmp_path, start):
    processes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        processes.append(start(run_words(tmp_path / name, "soft", "--name", f"choice-{name}")))
    for process in processes:
        wait_for_accesses(process.pid)
    runs = [ask(str(process.pid), {"do": "status"}) for process in processes]

    async def steps(app, pilot):
        await until(pilot, lambda: isinstance(app.screen, Choose))
        assert "choice-one" in text_of(app)
        await pilot.press("down", "enter")
        await until(pilot, lambda: app.answer is not None)
        assert app.answer["name"] == "choice-two"

    live("", steps, runs=runs)


def test_a_run_of_another_vmm(tmp_path, start, vmm, backend):
    if backend == "soft":
        pytest.skip("needs the host's KVM")
    policy = tmp_path / "p.toml"
    policy.write_text("[[rule]]\nmsr = 0x35\nread = { value = 0x61 }\n")
    process = start(words_of("exec", "--policy", policy, "--", *vmm, 200_000_000))
    wait_for_accesses(process.pid)

    async def steps(app, pilot):
        await shows(app, pilot, "0x35 MSR_CORE_THREAD_COUNT")
        await until(pilot, lambda: text_of(app).count(" read  0x61 p.toml:1") > 3)
        await change(app, pilot, "7", read="value")
        await until(pilot, lambda: text_of(app).count(" read   0x7 live 0x35") > 3)

    live(process.pid, steps)


# Any number of MSRs, any size


class Many:
    """A run with as many MSRs as a run can tell of, all of which change between two answers."""

    pid = 1
    rows = 4096

    def __init__(self, target):
        self.asked = itertools.count(1)
        self.ended = False

    def watch(self, msr):
        if self.ended:
            raise Ended
        count = next(self.asked)
        return {
            "pid": 1, "name": "", "kind": "run", "command": EVIL, "backend": "soft",
            "started": "2026-01-01T00:00:00+00:00", "policy": EVIL, "replacements": 0, "vms": 1,
            "vcpus": 1, "accesses": count * self.rows, "dropped_events": 7, "failures": 2,
            "serial": count, "rest": "… and 5 accesses to 3 other MSRs", "changed": [],
            "rows": [row(n * 0x1234567 & 0xFFFFFFFF, count=count + n, rule=f"[b]{EVIL}") for n in
                     range(self.rows)],
            "msr": None if msr is None else {
                "index": msr, "given": {}, "recent": [
                    {"time": 0.0, "vm": 0, "vcpu": 0, "op": "read", "value": None,
                     "reason": "unknown", "outcome": "fault", "rule": f"[b]{EVIL}"}],
                "read": [{"rule": EVIL, "action": EVIL, "when": True}], "write": []},
        }  # fmt: skip


@pytest.fixture
def many(monkeypatch):
    monkeypatch.setattr(module, "WatchedRun", Many)


def test_as_many_msrs_as_there_can_be_are_shown_fast(many):
    async def steps(app, pilot):
        await until(pilot, lambda: len(app._table.lines) == Many.rows)
        answer, begun = Many("").watch(None), time.process_time()
        for _ in range(5):
            app.on__answered(module._Answered(answer))
            text_of(app)
        assert (time.process_time() - begun) / 5 < 0.4
        begun = time.process_time()
        for _ in range(5):
            app._table.action_page(1)
            text_of(app)
        assert (time.process_time() - begun) / 5 < 0.1
        await pilot.press("end")
        assert app.selected is app._table.lines[-1]
        await shows(app, pilot, f"{app.selected.index:#x}")
        await pilot.press("slash", *"2345")
        await until(pilot, lambda: 0 < len(app._table.lines) < 500)
        await pilot.press("escape")
        await until(pilot, lambda: len(app._table.lines) == Many.rows)

    live("1", steps)


def test_what_others_chose_is_text(many, monkeypatch):
    monkeypatch.setattr(Many, "rows", 50)

    async def steps(app, pilot):
        await shows(app, pilot, "…")
        await until(pilot, lambda: app.said_of_selected() is not None)
        await shows(app, pilot, f"[b]{TAME}"[:12])
        await shows(app, pilot, "2 handler failures")
        await shows(app, pilot, "7 events dropped from the trace")
        assert all(line.isprintable() for line in text_of(app).split("\n"))

    live("1", steps, size=(200, 50))


def test_any_size_of_the_terminal(many, monkeypatch):
    monkeypatch.setattr(Many, "rows", 50)

    async def steps(app, pilot):
        await until(pilot, lambda: app.answer is not None)
        assert f"{app._table.lines[0].index:#x}" in text_of(app)
        await pilot.press("enter")
        await pilot.press("escape", "w", "escape", "x", "escape", "slash", "a", "escape", "s", "o")
        for width, height in ((100, 30), (1, 1), (250, 70), (20, 5)):
            await pilot.resize_terminal(width, height)
        await pilot.press("t", "down", "pageup", "end", "home")

    live("1", steps, size=(20, 5))


def test_columns_are_sorted_by_a_click(many, monkeypatch):
    monkeypatch.setattr(Many, "rows", 50)

    async def steps(app, pilot):
        await until(pilot, lambda: app.answer is not None)
        for title, sort in (("index", Sort.INDEX), ("faults", Sort.FAULTS), ("reads", Sort.COUNT)):
            head = next(line for line in text_of(app).split("\n") if "last value" in line)
            await pilot.click("#table", offset=(head.index(title) + 1, 0))
            assert app._sort is sort
        await pilot.click("#table", offset=(4, 3))
        assert app.selected is app._table.lines[2]

    live("1", steps)
