"""Text of others in messages stays in its line, and is text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmsr.errors import FilterCapacityError, ImageError, KvmsrError, PolicyError
from kvmsr.text import counted, error_text, nearest, one_line, shown

EVIL = "\x1b[2J\u202e\r\nforged\x9b\u2028\x00\udcff"
TAME = r"\x1b[2J\u202e\r\nforged\x9b\u2028\x00\udcff"


def test_what_does_not_print_is_escaped():
    assert one_line(EVIL) == TAME
    assert one_line("Grüße, 世界 → a  b") == "Grüße, 世界 → a  b"


@given(st.text(st.characters()))
def test_every_character_stays_in_its_line(text):
    safe = one_line(text)
    assert safe.isprintable()
    safe.encode()
    assert one_line(safe) == safe


@pytest.mark.parametrize("kind", [KvmsrError, ImageError, PolicyError, FilterCapacityError])
def test_every_error_is_one_line(kind):
    assert str(kind(f"image {EVIL}")).endswith(f"image {TAME}")
    assert str(PolicyError("x", file=EVIL, key=EVIL, line=2)) == f"{TAME}:2: {TAME}: x"


class Odd(Exception):
    def __str__(self):
        raise RuntimeError

    __repr__ = __str__


def test_values_and_errors_are_short_and_safe():
    assert shown(0x35) == "0x35"
    assert shown(EVIL).isprintable()
    assert shown(Odd()) == "a Odd"
    assert shown("x" * 1000) == "'" + "x" * 98 + "…"
    assert error_text(ValueError("two\nlines \x1b[2J")) == r"ValueError: two lines \x1b[2J"
    assert error_text(Odd()) == "Odd"
    assert len(error_text(ValueError("x" * 10**6))) < 300
    assert nearest("raed", ["read", "write"]) == "did you mean 'read'?"


def test_nouns_are_in_the_number_of_what_is_counted():
    assert [counted(n, "read") for n in (0, 1, 2, 1234)] == [
        "0 reads", "1 read", "2 reads", "1,234 reads",
    ]  # fmt: skip
    assert [counted(n, "access", "accesses") for n in (1, 2)] == ["1 access", "2 accesses"]
