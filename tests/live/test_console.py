"""What a guest sends, as text."""

import os

from hypothesis import given
from hypothesis import strategies as st

from kvmsr.live.console import Cleaner, Tail, Wrapper


def cleaned(*parts):
    cleaner = Cleaner()
    return "".join(cleaner.clean(part) for part in parts)


def test_colours_and_cursor_movements_are_left_out():
    sent = b"\x1b[1;31mred\x1b[0m\r\nnext \x1b[2Jline\x1b]0;title\x07\x1b(B\tend\r\n"
    assert cleaned(sent) == "red\nnext line    end\n"


@given(st.lists(st.sampled_from(["a", "é", "\x1b[31m", "\x1b]0;t\x07", "\n", "\r"])), st.data())
def test_it_does_not_matter_where_what_is_sent_is_cut(texts, data):
    sent = "".join(texts).encode()
    at = data.draw(st.integers(0, len(sent)))
    assert cleaned(sent[:at], sent[at:]) == cleaned(sent)


@given(st.binary())
def test_nothing_moves_the_cursor(sent):
    for line in cleaned(sent).split("\n"):
        assert line.isprintable()


@given(st.text(alphabet="ab\n"), st.integers(1, 9), st.data())
def test_lines_are_cut_to_fit_wherever_they_are_cut_before(text, width, data):
    at = data.draw(st.integers(0, len(text)))
    wrapper = Wrapper()
    wrapped = wrapper.wrap(text[:at], width) + wrapper.wrap(text[at:], width)
    assert wrapped == Wrapper().wrap(text, width)
    assert all(len(line) <= width for line in wrapped.split("\n"))
    assert wrapped.replace("\n", "") == text.replace("\n", "")
    assert Wrapper().wrap(text, 1000) == text


def test_whoever_writes_does_not_wait_and_the_end_is_kept():
    reading, writing = os.pipe()
    tail = Tail(reading)
    for number in range(1000):
        os.write(writing, f"{number:999}\n".encode())
    os.close(writing)
    tail.join()
    data, lost = tail.take()
    assert len(data) + lost == 1_000_000
    assert lost > 0
    assert data.endswith(b" 999\n")
    assert tail.take() == (b"", 0)
