"""Lines about accesses, beside the guest's console."""

import pytest

from kvmsr.cli._console import Teller


@pytest.fixture
def screen(monkeypatch):
    """What comes out, in order, wherever it goes."""
    seen = []
    monkeypatch.setattr("click.echo", lambda text, **kw: seen.append(text))
    return seen


def test_a_line_waits_for_the_end_of_the_guests(screen):
    teller = Teller(lambda data: screen.append(data.decode()), shared=True)
    teller.tell(None, None, "one")
    teller.output(b"login")
    teller.tell(None, None, "two")
    teller.tell(None, None, "three")
    teller.output(b": ")
    teller.output(b"x\r\n")
    assert "".join(screen) == "kvmsr: one\nlogin: x\r\nkvmsr: two\nkvmsr: three\n"


def test_but_not_for_ever(screen):
    teller = Teller(lambda data: screen.append(data.decode()), shared=True)
    teller.output(b"> ")
    for n in range(101):
        teller.tell(None, None, str(n))
    assert "".join(screen).startswith("> \nkvmsr: 0\n")
    teller.output(b"> ")
    teller.tell(None, None, "last")
    assert "last" not in "".join(screen)
    teller.end()
    assert "".join(screen).endswith("> \nkvmsr: last\n")


def test_where_the_console_is_elsewhere_nothing_waits(screen):
    teller = Teller(lambda data: None, shared=False)
    teller.output(b"login")
    teller.tell(None, None, "one")
    assert screen == ["kvmsr: one\n"]
