"""When a policy's files are read again, and what of that counts."""

import time
from contextlib import contextmanager

import pytest

from kvmsr.policy.file import load_policy
from kvmsr.session import reload
from kvmsr.session.reload import Reloader

RULE = "[[rule]]\nmsr = 0x10\nread = { value = %d }\n"


class Requests:
    """
    A run, as a reloader sees it.

    :ivar meanwhile: called once, when a file has been read and nothing has been made of it.
    """

    def __init__(self, file):
        self.file = file
        self.policy = load_policy(file)
        self.put = []
        self.meanwhile = lambda: None

    def read_again(self):
        try:
            return load_policy(self.file)
        finally:
            meanwhile, self.meanwhile = self.meanwhile, lambda: None
            meanwhile()

    def put_in_force(self, policy):
        self.policy = policy
        self.put.append(policy.rules[0].read.value if policy.rules else None)
        return []


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(reload, "_PERIOD", 0.05)
    (tmp_path / "policy.toml").write_text(RULE % 1)
    return tmp_path / "policy.toml"


@contextmanager
def reloading(requests):
    said = []
    reloader = Reloader(requests, said.append)
    yield reloader, said
    reloader.close()


def wait(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("begun", ["", "[[rule]\n"], ids=["truncated", "half"])
@pytest.mark.parametrize("asked", [False, True])
def test_what_is_written_while_it_is_read_does_not_count(file, begun, asked):
    requests = Requests(file)
    requests.meanwhile = lambda: file.write_text(RULE % 22)
    with reloading(requests) as (reloader, said):
        file.write_text(begun)
        if asked:
            reloader.reload()
        wait(lambda: requests.put)
    assert requests.put == [22]
    assert said == [f"reloaded {file}"]


def test_a_file_that_changes_once_more_is_read_once_more(file):
    requests = Requests(file)
    with reloading(requests) as (_, said):
        for value in (22, 333):
            file.write_text(RULE % value)
            wait(lambda value=value: requests.put[-1:] == [value])
        time.sleep(0.5)
    assert requests.put == [22, 333]
    assert len(said) == 2


def test_an_error_is_said_once_and_the_policy_stays(file):
    requests = Requests(file)
    with reloading(requests) as (_, said):
        file.write_text("[[rule]\n")
        wait(lambda: said)
        time.sleep(0.5)
        assert len(said) == 1
        assert said[0].startswith(f"the policy was not reloaded: {file}:1: ")
        file.write_text(RULE % 4444)
        wait(lambda: requests.put)
    assert requests.put == [4444]
