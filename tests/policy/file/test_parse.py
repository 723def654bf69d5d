"""Policy files: what they mean, and that what is wrong is told with file, line and key."""

import os
import re
import time

import pytest

from kvmsr.errors import PolicyError
from kvmsr.policy import Access, Op, Plain, Policy, Python, Reason, Value
from kvmsr.policy.file import load_policy, parse_policy, read_policy
from kvmsr.policy.file.toml import to_toml

GOOD = """\
[policy]
name = "mixed"
description = "a rule of each kind"

[defaults]
unknown = "ignore"
on_error = "stop"

[[rule]]
msr = "MSR_CORE_THREAD_COUNT"
read = { value = 0xffff_ffff_ffff_ffff }
write = "fault"

[[rule]]
msr = ["0x10-0x20", 0x35, "pat", "0x21"]
read = "shadow"
write = "shadow"
reset = 6

[[rule]]
msr = 0x1b0
write = { python = "handlers:on_write" }
"""


def test_a_policy_is_what_its_file_says(tmp_path):
    (tmp_path / "handlers.py").write_text("def on_write(access):\n    pass\n")
    (tmp_path / "mixed.toml").write_text(GOOD)
    policy = load_policy(tmp_path / "mixed.toml")
    assert policy.name == "mixed"
    assert policy.source == str(tmp_path / "mixed.toml")
    assert policy.defaults.unknown is Plain.IGNORE
    assert policy.defaults.invalid is Plain.FAULT
    assert policy.defaults.on_error is Plain.STOP
    first, second, third = policy.rules
    assert first.read == Value((1 << 64) - 1)
    assert first.write is Plain.FAULT
    assert first.msrs == ((0x35, 0x35),)
    assert second.msrs == ((0x10, 0x21), (0x35, 0x35), (0x277, 0x277))
    assert second.reset == 6
    assert isinstance(third.write, Python)
    assert third.read is None
    assert [rule.where for rule in policy.rules] == [
        "mixed.toml:9",
        "mixed.toml:14",
        "mixed.toml:20",
    ]


# What is wrong, its line, its key, and a piece of the message.
WRONG = [
    ("[[rule]]\nmsr = 1\nread = 'faultt'", 3, "rule[0].read", "did you mean 'fault'"),
    ("[[rule]]\nmsr = 1\n\nraed = 'fault'", 4, "rule[0].raed", "did you mean 'read'"),
    ("[[rule]]\nread = 'fault'", 1, "rule[0]", "'msr' is missing"),
    ("\n[[rule]]\nmsr = 1", 2, "rule[0]", "needs an action"),
    ("[[rule]]\nmsr = 'IA32_MISC_ENABEL'\nread = 'fault'", 2, "rule[0].msr", "IA32_MISC_ENABLE"),
    ("[[rule]]\nmsr = '0x9-0x3'\nread = 'fault'", 2, "rule[0].msr", "ends before"),
    ("[[rule]]\nmsr = '010'\nread = 'fault'", 2, "rule[0].msr", "is not an MSR"),
    ("[[rule]]\nmsr = '0x_'\nread = 'fault'", 2, "rule[0].msr", "is not an MSR"),
    ("[[rule]]\nmsr = '1__0'\nread = 'fault'", 2, "rule[0].msr", "is not an MSR"),
    (
        f"[[rule]]\nmsr = '{'9' * 5000}'\nread = 'fault'",
        2,
        "rule[0].msr",
        "is not an MSR",
    ),
    ('[policy]\nextends = ["a\\u0000b"]', 2, "policy.extends[0]", "not the name of a file"),
    (f"[policy]\nextends = ['{'a' * 5000}']", 2, "policy.extends[0]", "File name too long"),
    ("[[rule]]\nmsr = 0x1ffffffff\nread = 'fault'", 2, "rule[0].msr", "out of range"),
    ("[[rule]]\nmsr = -1\nread = 'fault'", 2, "rule[0].msr", "out of range"),
    ("[[rule]]\nmsr = true\nread = 'fault'", 2, "rule[0].msr", "got boolean"),
    ("[[rule]]\nmsr = 1.5\nread = 'fault'", 2, "rule[0].msr", "got float"),
    ("[[rule]]\nmsr = []\nread = 'fault'", 2, "rule[0].msr", "no MSR"),
    ("[[rule]]\nmsr = '*'\nread = 'fault'", 2, "rule[0].msr", "write a number"),
    (
        "[[rule]]\nmsr = 'IA32_MD*_STATUS'\nread = 'fault'",
        2,
        "rule[0].msr",
        "the closest name is IA32_M",
    ),
    ("[[rule]]\nmsr = 1\nread = { host = 'same' }", 3, "rule[0].read", "did you mean 'same-cpu'"),
    ("[[rule]]\nmsr = 1\nread = { host = -1 }", 3, "rule[0].read", "is not a CPU"),
    ("[[rule]]\nmsr = 1\nwrite = { host = 0 }", 3, "rule[0].write", "allow_host_writes = true"),
    ("[[rule]]\nmsr = 1\nread = { host = 0, value = 1 }", 3, "rule[0].read", "exactly one"),
    ("[[rule]]\nmsr = 1\nread = 'shadow'\nlog = 'onec'", 4, "rule[0].log", "did you mean 'once'"),
    (
        "[[rule]]\nmsr = 1\nread = 'fault'\nscope = 'core'",
        4,
        "rule[0].scope",
        "neither action is shadow",
    ),
    (
        "[[rule]]\nmsr = 1\nread = 'fault'\nreset = 3",
        4,
        "rule[0].reset",
        "neither action is shadow",
    ),
    (
        "[[rule]]\nmsr = 1\nread = 'fault'\n\nbits = { 0 = 'rw' }",
        5,
        "rule[0].bits",
        "neither action is shadow",
    ),
    (
        "[[rule]]\nmsr = 1\nread = 'shadow'\nbits = { 0 = 'r' }",
        4,
        "rule[0].bits",
        "is not a kind of bit",
    ),
    ("[[rule]]\nmsr = 1\nread = 'shadow'\nbits = { 0 = 'lok' }", 4, "rule[0].bits", "mean 'lock'"),
    ("[[rule]]\nmsr = 1\nread = 'shadow'\nbits = { 64 = 'ro' }", 4, "rule[0].bits", "0 to 63"),
    ("[[rule]]\nmsr = 1\nread = 'shadow'\nbits = { 0 = 3 }", 4, "rule[0].bits", "got integer"),
    ("[[rule]]\nmsr = 1\nread = 'fault'\nwhen = { vcp = 1 }", 4, "rule[0].when.vcp", "mean 'vcpu'"),
    ("[[rule]]\nmsr = 1\nread = 'fault'\nwhen = { cpl = 4 }", 4, "rule[0].when.cpl", "0 to 3"),
    (
        "[[rule]]\nmsr = 1\nread = 'fault'\n[rule.when]\nrip = '0x'",
        5,
        "rule[0].when.rip",
        "neither an address range nor",
    ),
    ("[[rule]]\nmsr = 1\nread = 'fault'\nwhen = { }", 4, "rule[0].when", "condition is empty"),
    (
        "[[rule]]\nmsr = 1\nread = 'fault'\nwhen = { value = 1 }",
        4,
        "rule[0].when.value",
        "reads have no value",
    ),
    (
        "[[rule]]\nmsr = 1\nread = 'fault'\nwhen = { reason = 'filtered' }",
        4,
        "rule[0].when.reason",
        "did you mean 'filter'",
    ),
    ("[[rule]]\nmsr = [1,\n 'nope']\nread = 'fault'", 2, "rule[0].msr", "'nope'"),
    ("[[rule]]\nmsr = 1\nread = 5", 3, "rule[0].read", "got integer"),
    ("[[rule]]\nmsr = 1\nread = { value = 'x' }", 3, "rule[0].read.value", "got string"),
    ("[[rule]]\nmsr = 1\nread = { value = -1 }", 3, "rule[0].read", "64 bits"),
    ("[[rule]]\nmsr = 1\nread = { value = 0x1_0000_0000_0000_0000 }", 3, "rule[0].read", "64 bits"),
    ("[[rule]]\nmsr = 1\nread = { valu = 1 }", 3, "rule[0].read.valu", "did you mean 'value'"),
    ("[[rule]]\nmsr = 1\nread = { }", 3, "rule[0].read", "exactly one"),
    ("[[rule]]\nmsr = 1\nwrite = { value = 1 }", 3, "rule[0].write", "can only be read"),
    ("[[rule]]\nmsr = 1\nread = 'shadow'\nreset = -4", 4, "rule[0].reset", "64 bits"),
    ("[[rule]]\nmsr = 1\nread = { python = 'nope' }", 3, "rule[0].read", "module:function"),
    (
        "[[rule]]\nmsr = 1\nread = { python = 'no_mod:f' }",
        3,
        "rule[0].read",
        "cannot import module",
    ),
    ("[[rule]]\nmsr = 1\nread = { python = 'os:nope' }", 3, "rule[0].read", "no function 'nope'"),
    ("[[rule]]\nmsr = 1\nread = { python = 'os:sep' }", 3, "rule[0].read", "no function 'sep'"),
    ("[defaults]\nunknown = 'kernel'", 2, "defaults.unknown", "not an action here"),
    ("[defaults]\non_error = 'shadow'", 2, "defaults.on_error", "fault, ignore, stop"),
    ("[defaults]\nunknwon = 'fault'", 2, "defaults.unknwon", "did you mean 'unknown'"),
    ("[policy]\nname = 3", 2, "policy.name", "expected string"),
    (
        "[policy]\nextends = ['nope.toml']",
        2,
        "policy.extends[0]",
        "nope.toml: cannot read the policy: No such file",
    ),
    ("[policy]\nextends = ['preset:linus']", 2, "policy.extends[0]", "did you mean 'linux'"),
    ("[policy]\nallow_host_write = true", 2, "policy.allow_host_write", "mean 'allow_host_writes'"),
    ("[rule]\nmsr = 1", 1, "rule", "[[rule]]"),
    ("rule = 5", 1, "rule", "expected array"),
    ("[topology]\nx = 1", 2, "topology.x", "there are threads_per_core, cores_per_package"),
    ("[topology]\ncores_per_package = 0", 2, "topology.cores_per_package", "1 or more"),
    ("[topologie]\nx = 1", 1, "topologie", "did you mean 'topology'"),
    ("[[rule]]\nmsr = 1\nread = 'shadow'\nscope = 'socket'", 4, "rule[0].scope", "is not a scope"),
    ("[[rule]]\nmsr = 1\nread = 'shadow'\nscope = 'cores'", 4, "rule[0].scope", "mean 'core'"),
    (
        "[[rule]]\nmsr = 0x35\nread = { model = 'topology.core-thread-cuont' }",
        3,
        "rule[0].read",
        "did you mean 'topology.core-thread-count'",
    ),
    (
        "[[rule]]\nmsr = 0x36\nread = { model = 'topology.core-thread-count' }",
        1,
        "rule[0]",
        "has no MSR 0x36; it has 0x35",
    ),
    (
        "[[rule]]\nmsr = 0x35\nread = { model = 'topology.core-thread-count', cores = 3 }",
        3,
        "rule[0].read.cores",
        "there are none here",
    ),
    ("[[rule]]\nmsr = 1\nread = { model = 3 }", 3, "rule[0].read.model", "got integer"),
    (
        "[[rule]]\nmsr = 1\nread = { model = 'os:PathLike' }",
        3,
        "rule[0].read",
        "register model: derive",
    ),
    ("[[rule]]\nmsr = 1\nread = { model = 'no_mod:C' }", 3, "rule[0].read", "cannot import module"),
    ("[[rule]]\nmsr = 1\nmodel = 3", 3, "rule[0].model", "expected string or table"),
    ("[[rule]]\nmsr = 0x19c\nmodel = 'termal'", 3, "rule[0].model", "did you mean 'thermal'"),
    (
        "[[rule]]\nmsr = 0x19c\nmodel = { model = 'thermal' }",
        3,
        "rule[0].model",
        "the key 'name' is missing",
    ),
    (
        "[[rule]]\nmsr = 0x19c\n[rule.model]\nname = 'thermal'\ncelsus = 3.0",
        5,
        "rule[0].model.celsus",
        "did you mean 'celsius'",
    ),
    ("[[rule]]\nmsr = 0x19d\nmodel = 'thermal'", 1, "rule[0]", "has no MSR 0x19d"),
    (
        "[[rule]]\nmsr = 0x19c\nmodel = 'thermal'\nread = 'fault'",
        4,
        "rule[0].read",
        "model answers reads, too: leave out one of the two",
    ),
    (
        "[[rule]]\nmsr = 0x19c\nmodel = 'thermal'\nwrite = { model = 'thermal' }",
        4,
        "rule[0].write",
        "model answers writes, too: leave out one of the two",
    ),
    (
        "[[rule]]\nmsr = 0x35\nmodel = 'topology.core-thread-count'",
        3,
        "rule[0].model",
        'only serves reads: use it as read, with write = "fault"',
    ),
    ("[[rule]]\nmsr = 1\nmodel = 'no_mod:C'", 3, "rule[0].model", "cannot import module"),
    ("a =", 1, "", "invalid TOML"),
    ("\n\nx = 'open", 3, "", "invalid TOML"),
    ("[a]\n[a]\n", 2, "", "invalid TOML"),
]


@pytest.mark.parametrize(("text", "line", "key", "piece"), WRONG)
def test_what_is_wrong_is_told_with_line_and_key(text, line, key, piece, tmp_path):
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(PolicyError) as caught:
        load_policy(file)
    error, message = caught.value, str(caught.value)
    assert (error.file, error.line, error.key) == (str(file), line, key)
    assert message.startswith(f"{file}:{line}: {key}: " if key else f"{file}:{line}: ")
    assert piece in message
    assert "\n" not in message


def test_a_missing_or_unreadable_file_is_told(tmp_path):
    with pytest.raises(PolicyError, match=r"nope\.toml: cannot read the policy: No such file"):
        load_policy(tmp_path / "nope.toml")
    with pytest.raises(PolicyError, match="a directory, not a regular file"):
        load_policy(tmp_path)
    os.mkfifo(tmp_path / "fifo.toml")
    with pytest.raises(PolicyError, match=r"fifo\.toml: .* it is a FIFO, not a regular file"):
        load_policy(tmp_path / "fifo.toml")
    (tmp_path / "large.toml").write_text("#" * (4 << 20) + "\n")
    with pytest.raises(PolicyError, match="4,194,305 bytes, and the limit is 4,194,304"):
        load_policy(tmp_path / "large.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyError, match="not UTF-8"):
        load_policy(tmp_path / "bytes.toml")


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def test_own_rules_come_before_those_of_bases_from_last_to_first(tmp_path):
    write(
        tmp_path,
        first='[defaults]\nunknown = "ignore"\ninvalid = "stop"\n[[rule]]\nmsr = 1\nread = "fault"',
        second='[defaults]\nunknown = "fault"\n[[rule]]\nmsr = 1\nread = "ignore"',
        own='[policy]\nextends = ["first.toml", "second.toml"]\n[[rule]]\nmsr = 1\nread = "stop"',
    )
    policy = load_policy(tmp_path / "own.toml")
    assert [rule.where for rule in policy.rules] == ["own.toml:3", "second.toml:3", "first.toml:4"]
    # Also where it says what is the built-in default, the later base wins.
    assert policy.defaults.unknown is Plain.FAULT
    assert policy.defaults.invalid is Plain.STOP


def test_bases_are_found_beside_the_file_that_names_them(tmp_path):
    (tmp_path / "sub").mkdir()
    write(
        tmp_path / "sub",
        deep='[[rule]]\nmsr = 1\nread = "fault"',
        base='[policy]\nextends = ["deep.toml"]',
    )
    write(tmp_path, own='[policy]\nextends = ["sub/base.toml"]')
    assert len(load_policy(tmp_path / "own.toml").rules) == 1


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_cycle_of_extends_is_told(length, tmp_path):
    for n in range(length):
        write(tmp_path, **{f"p{n}": f'[policy]\nextends = ["p{(n + 1) % length}.toml"]'})
    with pytest.raises(PolicyError, match=r"extends\[0\]: extends itself: p0\.toml → ") as caught:
        load_policy(tmp_path / "p0.toml")
    assert caught.value.file.endswith(f"p{length - 1}.toml")


def test_a_base_that_two_extend_is_read_once(tmp_path):
    write(
        tmp_path,
        base='[[rule]]\nmsr = 1\nread = "fault"',
        left='[policy]\nextends = ["base.toml"]',
        right='[policy]\nextends = ["base.toml"]',
        own='[policy]\nextends = ["left.toml", "right.toml"]',
    )
    rules = load_policy(tmp_path / "own.toml").rules
    assert [rule.where for rule in rules] == ["base.toml:1"]


def test_rules_of_a_base_that_two_extend_come_where_they_win_first(tmp_path):
    write(
        tmp_path,
        base='[[rule]]\nmsr = 1\nread = "fault"',
        left='[policy]\nextends = ["base.toml"]\n[[rule]]\nmsr = 1\nread = "stop"',
        right='[policy]\nextends = ["base.toml"]\n[[rule]]\nmsr = 1\nread = "ignore"',
        own='[policy]\nextends = ["left.toml", "right.toml"]',
    )
    rules = load_policy(tmp_path / "own.toml").rules
    assert [rule.where for rule in rules] == ["right.toml:3", "base.toml:1", "left.toml:3"]


def test_many_levels_of_two_are_read_at_once(tmp_path):
    for n in range(22):
        following = [f"l{n + 1}.toml", f"r{n + 1}.toml"] if n < 21 else []
        text = f"[policy]\nextends = {following}\n[[rule]]\nmsr = {n}\nread = 'fault'"
        write(tmp_path, **{f"l{n}": text, f"r{n}": text})
    begun = time.monotonic()
    assert len(load_policy(tmp_path / "l0.toml").rules) == 43
    assert time.monotonic() - begun < 5


def test_a_chain_of_extends_has_an_end(tmp_path):
    for n in range(100):
        write(tmp_path, **{f"p{n}": f"[policy]\nextends = ['p{n + 1}.toml']"})
    with pytest.raises(PolicyError, match="extends more than 64 levels deep"):
        load_policy(tmp_path / "p0.toml")


def test_an_error_in_a_base_names_the_base(tmp_path):
    write(tmp_path, base="[[rule]]\nmsr = 1", own='[policy]\nextends = ["base.toml"]')
    with pytest.raises(PolicyError) as caught:
        load_policy(tmp_path / "own.toml")
    assert caught.value.file.endswith("base.toml")


ALL_WRONG = """\
[policy]
name = 3
extends = ["base.toml", "nope.toml", "base.toml"]
nmae = "x"
[defaults]
unknown = "kernel"
invalid = "shado"
[topology]
threads_per_core = 0
[[rule]]
msr = "IA32_PATT"
read = "faultt"
write = { value = 1 }
lgo = "once"
[[rule]]
msr = 1
read = { host = 0 }
write = { host = 0 }
[[rule]]
msr = 1
read = "shadow"
bits = { 0 = "r" }
when = { value = "x" }
[[rule]]
read = "fault"
[[rule]]
msr = 2
read = "stop"
[odd]
"""


def test_everything_that_is_wrong_is_reported_file_by_file_and_line_by_line(tmp_path):
    write(tmp_path, own=ALL_WRONG, base="[[rule]]\nmsr = 1\n[[rule]]\nread = 1")
    reading = read_policy(tmp_path / "own.toml")
    own, base = str(tmp_path / "own.toml"), str(tmp_path / "base.toml")
    assert [(error.file, error.line, error.key) for error in reading.errors] == [
        (own, 2, "policy.name"),
        (own, 3, "policy.extends[1]"),
        (own, 4, "policy.nmae"),
        (own, 6, "defaults.unknown"),
        (own, 7, "defaults.invalid"),
        (own, 9, "topology.threads_per_core"),
        (own, 11, "rule[0].msr"),
        (own, 12, "rule[0].read"),
        (own, 13, "rule[0].write"),
        (own, 14, "rule[0].lgo"),
        (own, 18, "rule[1].write"),
        (own, 22, "rule[2].bits"),
        (own, 23, "rule[2].when.value"),
        (own, 24, "rule[3]"),
        (own, 29, "odd"),
        (base, 1, "rule[0]"),
        (base, 3, "rule[1]"),
        (base, 4, "rule[1].read"),
    ]
    assert [rule.where for rule in reading.policy.rules] == ["own.toml:26"]
    with pytest.raises(PolicyError, match=r"policy\.name"):
        load_policy(tmp_path / "own.toml")


def test_no_code_of_a_policy_that_is_wrong_is_run(tmp_path):
    (tmp_path / "handlers.py").write_text(
        "open(__file__ + '.ran', 'w').close()\ndef answer(a): pass"
    )
    write(tmp_path, p=RULE + "[[rule]]\nmsr = 1\nread = 'x'\n", good=RULE)
    assert len(read_policy(tmp_path / "p.toml").errors) == 1
    assert not (tmp_path / "handlers.py.ran").exists()
    load_policy(tmp_path / "good.toml")
    assert (tmp_path / "handlers.py.ran").exists()


RULE = '[[rule]]\nmsr = 0x35\nread = { python = "handlers:answer" }\n'


def test_two_policies_may_each_have_their_handlers(tmp_path):
    answers = []
    for n in (1, 2):
        folder = tmp_path / str(n)
        folder.mkdir()
        (folder / "handlers.py").write_text(f"import helper\ndef answer(access): return {n}\n")
        (folder / "helper.py").write_text("")
        (folder / "p.toml").write_text(RULE)
        policy = load_policy(folder / "p.toml")
        answers.append(policy.rules[0].read.function(None))
    assert answers == [1, 2]


def test_rules_of_one_policy_share_their_module(tmp_path):
    (tmp_path / "handlers.py").write_text(
        "seen = []\ndef answer(access):\n    seen.append(access)\n    return len(seen)\n"
    )
    (tmp_path / "p.toml").write_text(RULE + RULE.replace("0x35", "0x36"))
    one, two = load_policy(tmp_path / "p.toml").rules
    access = Access(0, Op.READ, 0x35, 0, Reason.UNKNOWN)
    assert [one.read.function(access), two.read.function(access)] == [1, 2]


def test_a_module_that_fails_is_told_in_one_line(tmp_path):
    (tmp_path / "handlers.py").write_text("1 / 0\n")
    (tmp_path / "p.toml").write_text(RULE)
    with pytest.raises(PolicyError, match="ZeroDivisionError: division by zero"):
        load_policy(tmp_path / "p.toml")


def test_an_empty_policy_is_a_policy():
    assert parse_policy("").rules == ()


def test_a_module_that_exits_is_refused(tmp_path):
    (tmp_path / "handlers.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "policy.toml").write_text(RULE)
    with pytest.raises(PolicyError, match="SystemExit"):
        load_policy(tmp_path / "policy.toml")


@pytest.mark.parametrize("much", ["9" * 5000, "[" * 3000 + "]" * 3000, "{a=" * 3000 + "}" * 3000])
def test_what_python_cannot_read_is_refused(much):
    with pytest.raises(PolicyError, match=r"policy:2: (a number of more than|too deeply nested)"):
        parse_policy(f"b = [1]\na = {much}\nc = 2\n")


@pytest.mark.parametrize(
    "text",
    [
        '"a\\nb" = 1',
        "[[rule]]\nmsr = 1\nread = { 'a`b' = 1 }",
        '[[rule]]\nmsr = 1\nread = { "a\\nb" = 1 }',
        '[policy]\nextends = ["a\\nb"]',
        "[[rule]]\nmsr = '" + "a" * 5000 + "'\nread = 1",
        "[[rule]]\nmsr = 1\nread = '" + "a" * 5000 + "'",
        "[[rule]]\nmsr = 1\nread = { python = '" + "a" * 5000 + ":f' }",
    ],
)
def test_messages_are_one_line_and_no_book(text):
    with pytest.raises(PolicyError) as caught:
        parse_policy(text)
    assert caught.value.line
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_an_unknown_key_has_the_line_of_what_is_in_it():
    with pytest.raises(PolicyError, match="policy:2: a: unknown key"):
        parse_policy("\n[a.b.c]\nd = 1\n")


def test_a_loop_of_links_is_no_base(tmp_path):
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    write(tmp_path, own='[policy]\nextends = ["loop.toml"]')
    with pytest.raises(PolicyError, match=r"extends\[0\]: "):
        load_policy(tmp_path / "own.toml")


@pytest.mark.parametrize(
    "text",
    [
        "raise GeneratorExit",
        "class E(Exception):\n    def __str__(self): raise SystemExit\nraise E",
        "def __getattr__(name): raise ValueError(name)",
        "raise ValueError('x' * 100_000)",
    ],
)
def test_whatever_a_module_does_is_told(text, tmp_path):
    (tmp_path / "handlers.py").write_text(text)
    (tmp_path / "p.toml").write_text(RULE)
    with pytest.raises(
        PolicyError, match=r"p\.toml:3: rule\[0\]\.read: .*module 'handlers'"
    ) as caught:
        load_policy(tmp_path / "p.toml")
    assert len(str(caught.value)) < 700


def test_but_ctrl_c_in_a_module_is_not_the_policys(tmp_path):
    (tmp_path / "handlers.py").write_text("raise KeyboardInterrupt")
    (tmp_path / "p.toml").write_text(RULE)
    with pytest.raises(KeyboardInterrupt):
        load_policy(tmp_path / "p.toml")


@pytest.mark.parametrize("where", ["handlers", "handlers.inner"])
@pytest.mark.parametrize("folder", ["plain", "v1.2"])
def test_a_package_beside_the_policy_is_found(where, folder, tmp_path):
    home = tmp_path / folder
    package = home / "handlers"
    package.mkdir(parents=True)
    answer = "seen = []\ndef answer(access):\n    seen.append(0)\n    return N + len(seen)\n"
    (package / "__init__.py").write_text(f"from .numbers import N\n{answer}")
    (package / "inner.py").write_text(f"from .numbers import N\n{answer}")
    (home / "p.toml").write_text(RULE.replace("handlers:", f"{where}:"))
    # Read again, it begins anew, submodules included.
    for number in (40, 50):
        (package / "numbers.py").write_text(f"N = {number}  # {'x' * number}\n")
        function = load_policy(home / "p.toml").rules[0].read.function
        assert [function(None), function(None)] == [number + 1, number + 2]


def test_a_package_without_the_module_is_told(tmp_path):
    (tmp_path / "handlers").mkdir()
    (tmp_path / "handlers" / "__init__.py").write_text("")
    (tmp_path / "p.toml").write_text(RULE.replace("handlers:", "handlers.nope:"))
    with pytest.raises(PolicyError, match=r"cannot import module 'handlers\.nope'"):
        load_policy(tmp_path / "p.toml")


def test_what_is_observed_adds_up(tmp_path):
    (tmp_path / "base.toml").write_text('[policy]\nobserve = ["0x20-0x2f", "IA32_EFER"]\n')
    (tmp_path / "own.toml").write_text('[policy]\nextends = ["base.toml"]\nobserve = 0x10\n')
    policy = load_policy(tmp_path / "own.toml")
    assert policy.observe == ((0x10, 0x10), (0x20, 0x2F), (0xC0000080, 0xC0000080))
    assert parse_policy(to_toml(policy)).observe == policy.observe
    every = load_policy("preset:watch")
    assert every.observe == ((0, (1 << 32) - 1),)
    assert parse_policy(to_toml(every)).observe == every.observe
    assert (every.rules, every.defaults) == ((), Policy().defaults)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('"IA32_NOPE"', "policy:2: policy.observe: no MSR is called 'IA32_NOPE'"),
        ("[[1]]", "policy:2: policy.observe[0]: expected integer or string"),
        ("-1", "policy:2: policy.observe: -1 is out of range"),
    ],
)
def test_what_cannot_be_observed_is_refused(value, message):
    with pytest.raises(PolicyError, match=re.escape(message)):
        parse_policy(f"[policy]\nobserve = {value}\n")
