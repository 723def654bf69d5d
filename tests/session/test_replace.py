"""A policy is replaced while a guest runs: from C, from Python, and on the soft backend."""

import threading
import time

import pytest

from kvmsr import (
    Boot,
    Defaults,
    Machine,
    Policy,
    PolicyError,
    Rule,
    UsageError,
    load_policy,
)
from kvmsr.session import Change, End, EndKind
from tests.counting import BAD, COUNTING, MSR, SHADOW

MODEL = """
from kvmsr.dispatch.models import Register, RegisterModel

class Own(RegisterModel):
    counts = Register([0x1b0, 0x1b1])
"""
OWN = (
    '[[rule]]\nmsr = [0x1b0, 0x1b1]\nread = { model = "own:Own" }\nwrite = { model = "own:Own" }\n'
)
WIDE = '[[rule]]\nmsr = "0xc0000080-0xc0000084"\nread = "kernel"\nwrite = "ignore"\n'
WRONG = f'[[rule]]\nmsr = [{MSR}, {MSR + 1}]\nread = {{ value = 1 }}\nwrite = "ignore"\n'


class Counting:
    """The counting guest, which runs in a thread until it is stopped or counts wrong."""

    def __init__(self, folder, policy, kind):
        image = folder / "counting.bin"
        image.write_bytes(COUNTING)
        self.machine = Machine(
            "soft" if kind == "soft" else "kvm",
            memory="2M", policy=policy, native=kind == "c", log=lambda *_: None,
        )  # fmt: skip
        self.machine.load(Boot(image, mode=16))
        self.session = self.machine.session
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        self.result = self.machine.run(120)

    def goes_on(self):
        """Return whether the guest makes accesses, and finds its registers as it left them."""
        before = self.machine.exits
        for _ in range(200):
            time.sleep(0.01)
            if self.machine.over:
                return False
            if self.machine.exits > before + 10:
                return True
        return False

    def ends(self):
        self._thread.join(60)
        return self.result

    def __enter__(self):
        self._thread.start()
        assert self.goes_on()
        return self

    def __exit__(self, *_):
        self.machine.end(End(EndKind.STOP, 0, "the test is over"))
        self._thread.join(60)
        self.machine.close()


def written(folder, name, text):
    (folder / name).write_text(text)
    return load_policy(folder / name)


def test_shadows_keep_their_values(tmp_path, kind):
    one = written(tmp_path, "one.toml", SHADOW)
    others = [written(tmp_path, "wide.toml", SHADOW + WIDE), one]
    with Counting(tmp_path, one, kind) as guest:
        for n in range(40):
            guest.session.replace(others[n % 2])
        assert guest.goes_on()
        assert guest.session.plan.policy is one
        guest.session.replace(written(tmp_path, "wrong.toml", WRONG))
        end = guest.ends().end
        assert (end.kind, end.code) == (EndKind.DEBUG_EXIT, BAD << 1 | 1)
        rules = {row.rule for row in guest.result.summary}
        assert rules >= {"one.toml:1", "wide.toml:1", "wrong.toml:1"}


def test_models_keep_their_state(tmp_path, kind):
    (tmp_path / "own.py").write_text(MODEL)
    one = written(tmp_path, "one.toml", OWN)
    with Counting(tmp_path, one, kind) as guest:
        for n in range(20):
            guest.session.replace(one)  # the same class
            again = written(tmp_path, "two.toml", OWN + WIDE)  # another class of the same name
            assert guest.session.replace(again) == []
            if n % 5 == 0:
                guest.session.undo()
        assert guest.goes_on()
        kept = guest.session._guests.registers(0).models.cells
        assert len(kept) == 1


def test_a_model_that_has_changed_too_much_begins_anew(tmp_path, kind):
    (tmp_path / "own.py").write_text(MODEL)
    with Counting(tmp_path, written(tmp_path, "one.toml", OWN), kind) as guest:
        (tmp_path / "own.py").write_text(f"{MODEL}\n    def restore(self, state): state['it']\n")
        [line] = guest.session.replace(written(tmp_path, "two.toml", OWN))
        assert "Own has changed and begins anew" in line
        assert guest.ends().end.code == BAD << 1 | 1


def test_a_policy_that_does_not_fit_changes_nothing(tmp_path, kind):
    (tmp_path / "own.py").write_text(MODEL)
    one = written(tmp_path, "one.toml", OWN)
    with Counting(tmp_path, one, kind) as guest:
        (tmp_path / "own.py").write_text(f"{MODEL}\n    def setup(self): raise OSError('none')\n")
        with pytest.raises(PolicyError, match="cannot be set up"):
            guest.session.replace(written(tmp_path, "two.toml", OWN))

        def refuse():
            raise UsageError("refused")

        (tmp_path / "own.py").write_text(MODEL)
        with pytest.raises(UsageError, match="refused"):
            guest.session.replace(written(tmp_path, "three.toml", OWN), Change(installed=refuse))
        assert guest.session.plan.policy is one
        assert guest.goes_on()


def test_there_and_back(tmp_path, kind):
    policies = [written(tmp_path, f"{n}.toml", SHADOW) for n in range(3)]
    with Counting(tmp_path, policies[0], kind) as guest:
        with pytest.raises(UsageError, match="no policy to return to"):
            guest.session.undo()
        guest.session.replace(policies[1])
        guest.session.replace(policies[2])
        guest.session.undo()
        assert guest.session.plan.policy is policies[1]
        guest.session.undo()
        assert guest.session.plan.policy is policies[0]
        assert guest.goes_on()
        with pytest.raises(UsageError, match="no policy to return to"):
            guest.session.undo()


def test_what_a_replaced_policy_has_noted_stays(tmp_path, kind):
    values = {}

    def fails_once(access):
        first = not values
        values[access.index] = access.value
        if first:
            raise ValueError("not for you")

    rule = Rule([MSR, MSR + 1], read=lambda access: values.get(access.index, 0), write=fails_once)
    policy = Policy([rule], Defaults(on_error="ignore"))
    with Counting(tmp_path, policy, kind) as guest:
        for _ in range(12):
            guest.session.replace(policy)
        assert guest.goes_on()
    assert guest.result.failure_count == 1
    assert guest.result.failures[0].message == "raised ValueError: not for you"
