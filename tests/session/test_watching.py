"""What a run tells those who watch it, and what they can change: on each backend."""

import json

import pytest

from kvmsr.errors import KvmsrError
from kvmsr.policy import Policy
from kvmsr.session import watching
from kvmsr.session.control import ask
from tests.command import kvmsr
from tests.harness import machine_with
from tests.live.guest import LETTERS, MSR, run_words, says, wait_for_accesses, wait_until


@pytest.fixture
def pid(tmp_path, start, backend):
    process = start(run_words(tmp_path, backend))
    wait_for_accesses(process.pid)
    return str(process.pid)


def watch(pid, since=0, msr=None):
    return ask(pid, {"do": "watch", "since": since, "msr": msr})


def test_only_rows_that_have_changed_are_told_again(pid):
    first = watch(pid)
    [row] = first["rows"]
    assert (row["index"], row["op"], row["rule"]) == (f"{MSR:#x}", "read", "letters.toml:2")
    wait_for_accesses(pid, row["count"] + 1)
    later = watch(pid, first["serial"])
    assert later["rows"][0]["count"] > row["count"]
    ask(pid, {"do": "change", "msr": MSR, "read": ord("b")})
    wait_until(lambda: len(watch(pid)["rows"]) == 2)
    settled = watch(pid)
    rules = [row["rule"] for row in watch(pid, settled["serial"])["rows"]]
    assert set(rules) <= {f"live {MSR:#x}"}  # the other rule's count does not change any more
    assert {row["rule"] for row in watch(pid)["rows"]} == {"letters.toml:2", f"live {MSR:#x}"}


def test_the_last_accesses_to_an_msr_are_kept_while_somebody_asks(pid):
    found = wait_until(lambda: watch(pid, 0, MSR)["msr"]["recent"])
    one = found[-1]
    assert (one["op"], one["value"], one["outcome"]) == ("read", "0x61", "value")
    assert (one["vcpu"], one["reason"], one["rule"]) == (0, "unknown", "letters.toml:2")
    times = [one["time"] for one in wait_until(lambda: watch(pid, 0, MSR)["msr"]["recent"])]
    assert times == sorted(times)
    assert watch(pid, 0, MSR + 1)["msr"]["recent"] == []
    says = watch(pid, 0, MSR)["msr"]
    rule = {"rule": "letters.toml:2", "when": False}
    assert says["read"] == [{**rule, "action": "value 0x61"}]
    assert says["write"] == [{**rule, "action": "ignore"}]


def test_a_busy_msr_leaves_room_for_another_one(tmp_path, backend):
    with machine_with(tmp_path, BUSY, Policy(), backend) as machine:
        asked = watching.Watching(machine.session)
        asked.msr(0x1000)
        asked.msr(0x2000)
        machine.run(30)
        found = asked.msr(0x2000)["recent"]
        assert [(one["op"], one["value"], one["outcome"]) for one in found] == [
            ("write", "0x7", "fault")
        ]
        assert len(asked.msr(0x1000)["recent"]) == 64


def test_accesses_cost_nothing_more_when_nobody_asks_any_more(tmp_path, monkeypatch, backend):
    monkeypatch.setattr(watching, "_LEASE", 0.1)
    with machine_with(tmp_path, LETTERS, Policy(), backend) as machine:
        session = machine.session
        asked = watching.Watching(session)

        def kept():
            if session.shared is not None:
                return [number for number in session.shared.block.tables.watched if number]
            return [vcpu for _, vcpu in session.python_vcpus if vcpu._takers]

        assert not kept()
        for index in range(9):
            asked.msr(index)
        assert len(kept()) == (watching.MAX_WATCHED if session.shared is not None else 1)
        wait_until(lambda: not kept())


def test_the_guest_sees_a_change_and_its_undoing(tmp_path, pid):
    says(tmp_path, "a")
    ask(pid, {"do": "change", "msr": MSR, "read": ord("b"), "write": "shadow"})
    says(tmp_path, "b")
    ask(pid, {"do": "change", "msr": MSR, "read": ord("c"), "write": "shadow"})
    says(tmp_path, "c")
    shown = json.loads(kvmsr("ctl", pid, "show", "--json")[0])
    assert [rule["key"] for rule in shown["policy"]["rule"]] == ["live", "rule[0]"]
    ask(pid, {"do": "undo"})
    says(tmp_path, "b")
    ask(pid, {"do": "change", "msr": MSR})
    says(tmp_path, "a")
    assert ask(pid, {"do": "changes"})["count"] == 0


# Writes 7 to MSR 0x2000 once, and then reads 0x1000 two hundred times. All of them fault; the
# handler steps over them.
BUSY = bytes.fromhex(
    "31c0 8ed8 8ed0 bc0070"  # xor ax, ax; mov ds, ax; mov ss, ax; mov sp, 0x7000
    "c7063400 367c c70636000000"  # the vector of #GP
    "66b807000000 6631d2 66b900200000 0f30"  # mov eax, 7; xor edx, edx; mov ecx, 0x2000; wrmsr
    "66b900100000 bbc800"  # mov ecx, 0x1000; mov bx, 200
    "0f32 4b 75fb"  # again: rdmsr; dec bx; jnz again
    "fa f4"  # cli; hlt
    "5589e5 83460202 5d cf"  # the handler
)

WRONG = [
    {"msr": MSR, "read": "ignroe"},
    {"msr": MSR, "write": 5},
    {"msr": MSR, "read": {"value": 5}},
    {"msr": MSR, "read": 1 << 64},
    {"msr": 1 << 32, "read": 5},
    {"msr": -1, "read": 5},
    {"msr": MSR, "read": "shadow", "reset": "no"},
    {"msr": MSR, "log": "sometimes"},
    {"msr": 0x830, "read": 5},
]


def test_a_change_that_is_wrong_changes_nothing(pid):
    for wrong in WRONG:
        with pytest.raises(KvmsrError):
            ask(pid, {"do": "change", **wrong})
    assert ask(pid, {"do": "status"})["replacements"] == 0


def test_a_log_can_be_switched_on_without_another_action(tmp_path, start, backend):
    process = start(run_words(tmp_path, backend, "--log", tmp_path / "log"))
    wait_for_accesses(process.pid)
    assert (tmp_path / "log").read_text() == ""
    ask(str(process.pid), {"do": "change", "msr": MSR, "log": "always"})
    wait_until(lambda: (tmp_path / "log").read_text().count("\n") > 3)
    says(tmp_path, "a")
    assert (
        f"read of MSR {MSR:#x} (IA32_ENERGY_PERF_BIAS): 0x61 (live {MSR:#x}; unknown)"
        in (tmp_path / "log").read_text()
    )
