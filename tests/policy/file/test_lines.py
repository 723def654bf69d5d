"""Lines of keys, against a document that is written from its keys."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from kvmsr.policy.file.lines import deepest_line, key_lines, show

DOCUMENT = '''\
# a comment with [brackets] and "quotes
[policy]
name = "a # no comment"
description = """
[rule]
msr = 1
"""
"quoted.key" = 'x = y'
dotted.inner = 1

[[rule]]
msr = [ 0x35,      # first
  "0x10-0x20",
]
read = { value = 6, python = "a:b" }

[[rule]]
  msr = "PAT" # trailing
  write = "shadow"

[rule.sub]
deep = 1

[defaults]
unknown = "fault"
'''


def test_each_key_has_its_line():
    assert tomllib.loads(DOCUMENT)
    lines = key_lines(DOCUMENT)
    assert lines[("policy",)] == 2
    assert lines[("policy", "description")] == 4
    assert lines[("policy", "quoted.key")] == 8
    assert lines[("policy", "dotted", "inner")] == 9
    assert lines[("rule", 0)] == 11
    assert lines[("rule", 0, "msr")] == 12
    assert lines[("rule", 0, "read")] == 15
    assert lines[("rule", 1)] == 17
    assert lines[("rule", 1, "write")] == 19
    assert lines[("rule", 1, "sub", "deep")] == 22
    assert lines[("defaults", "unknown")] == 25


def test_paths_are_shown_as_people_write_them():
    assert show(("rule", 2, "read")) == "rule[2].read"
    assert show(("defaults", "unknown")) == "defaults.unknown"


values = st.sampled_from(
    [
        "1",
        '"text"',
        "'lit#eral'",
        '"esc\\"aped = ["',
        "[1, 2,\n 3]",
        '"""\nmulti\n[x]\n"""',
        "'''a\nb = 1\n'''",
        '{ a = "}", b = [1] }',
        '""""quoted"""" ',
        "1979-05-27T07:32:00Z",
    ]
)


@given(st.lists(st.tuples(st.integers(0, 3), values, st.booleans()), max_size=12))
def test_every_key_of_a_generated_document_is_found(entries):
    text, wanted, table, number = "", {}, (), -1
    for position, (kind, value, comment) in enumerate(entries):
        line = text.count("\n") + 1
        if kind == 0:
            number += 1
            text += "[[rule]]\n"
            table = ("rule", number)
            wanted[table] = line
        elif kind == 1:
            text += f"[t{position}.x]\n"
            table = (f"t{position}", "x")
            wanted[table] = line
        else:
            text += f"{'  ' * kind}k{position} = {value}"
            text += " # [c] = {\n" if comment else "\n\n"
            wanted[(*table, f"k{position}")] = line
    tomllib.loads(text)
    lines = key_lines(text)
    assert {path: lines.get(path) for path in wanted} == wanted
    assert key_lines(text.replace("\n", "\r\n")) == lines


def test_a_long_statement_is_walked_over_once():
    text = "a = [\n" + "1,\n" * 200_000 + "]\nb = 1\n"
    assert key_lines(text) == {("a",): 1, ("b",): 200_003}


def test_what_is_nested_deepest_has_a_line():
    assert deepest_line("a = [\n  [1],\n]\nb = '[[[['\n") == 2
    assert deepest_line("") == 1
