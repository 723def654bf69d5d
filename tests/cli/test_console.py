"""Lines about accesses, beside the guest's console."""

import pytest

from kvmsr.cli._console import TerminalLog


@pytest.fixture
def screen(monkeypatch):
    """What comes out, in order, wherever it goes."""
    seen = []
    monkeypatch.setattr("click.echo", lambda text, **kw: seen.append(text))
    return seen


def test_a_line_waits_for_the_end_of_the_guests(screen):
    log = TerminalLog(lambda data: screen.append(data.decode()), shared=True)
    log.log(None, None, "one")
    log.output(b"login")
    log.log(None, None, "two")
    log.log(None, None, "three")
    log.output(b": ")
    log.output(b"x\r\n")
    assert "".join(screen) == "kvmsr: one\nlogin: x\r\nkvmsr: two\nkvmsr: three\n"


def test_but_not_for_ever(screen):
    log = TerminalLog(lambda data: screen.append(data.decode()), shared=True)
    log.output(b"> ")
    for n in range(101):
        log.log(None, None, str(n))
    assert "".join(screen).startswith("> \nkvmsr: 0\n")
    log.output(b"> ")
    log.log(None, None, "last")
    assert "last" not in "".join(screen)
    log.end()
    assert "".join(screen).endswith("> \nkvmsr: last\n")


def test_where_the_console_is_elsewhere_nothing_waits(screen):
    log = TerminalLog(lambda data: None, shared=False)
    log.output(b"login")
    log.log(None, None, "one")
    assert screen == ["kvmsr: one\n"]
