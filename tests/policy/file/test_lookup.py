"""Looking names up without running anything: as the importer finds them, as far as can be known."""

import importlib
import os
import re
import sys
import textwrap

import pytest

from kvmsr.errors import BrokenInvariantError, PolicyError
from kvmsr.policy.file import load_policy, read_policy
from kvmsr.policy.file.importer import Importer
from kvmsr.policy.file.lookup import NameLookup
from kvmsr.policy.file.toml import to_toml
from kvmsr.policy.plan import compile_policy

LOUD = "raise SystemExit('this was run')\n"


def write(folder, **files):
    for name, text in files.items():
        file = folder / f"{name.replace('__', '/', 1)}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(textwrap.dedent(text))


def found(folder, name):
    lookup = NameLookup()
    lookup.function(name, folder)
    return lookup.found[name]


@pytest.mark.parametrize(
    "line",
    [
        "def f(access): pass",
        "async def f(access): pass",
        "class f: pass",
        "f = 5",
        "f: int = 5",
        "a, (b, *f) = g",
        "import f",
        "import f.inner",
        "import long as f",
        "from g import f",
        "from . import g as f",
        "if x:\n    pass\nelse:\n    f = 1",
        "try:\n    from quick import f\nexcept ImportError:\n    pass",
        "with open(x) as f: pass",
        "for f in x: pass",
        "print(f := 5)",
        "global f\nf = 5",
        "@x\ndef f(access): pass",
        "match x:\n    case [f]: pass",
    ],
)
def test_what_binds_a_name_is_seen(tmp_path, line):
    write(tmp_path, mine=LOUD + line)
    one = found(tmp_path, "mine:f")
    assert (one.where, one.unsure) == (str(tmp_path / "mine.py"), "")
    assert str(one) == f"mine:f in {tmp_path}/mine.py was looked up, not run"
    with pytest.raises(PolicyError, match="this was run"):
        Importer().function("mine:f", tmp_path)


@pytest.mark.parametrize(
    "line",
    ["g = 1", "def g():\n    f = 1", "class g:\n    f = 1", "print(f)", "'f = 1'", "g.f = 1"],
)
def test_what_does_not_is_an_error(tmp_path, line):
    write(tmp_path, mine=line)
    with pytest.raises(PolicyError, match=r"module 'mine' has no function 'f': nothing in .*mine"):
        found(tmp_path, "mine:f")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("from os.path import *", "imports * from os.path"),
        ("from . import *", "imports * from ."),
        ("def __getattr__(name): return print", "has a __getattr__"),
        ("def g():\n    global f\n    f = 1", "declares it global"),
        ("globals()['f'] = print", "calls globals()"),
        ("exec('f = 1')", "calls exec()"),
    ],
)
def test_what_cannot_be_known_is_said(tmp_path, line, why):
    write(tmp_path, mine=line)
    one = found(tmp_path, "mine:f")
    assert why in one.unsure
    assert "whether it exists was not checked" in str(one)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mine:f", "mine.py"),
        ("pack:f", "pack/__init__.py"),
        ("pack.inner:f", "pack/inner.py"),
        ("plain.inner:f", "plain/inner.py"),
    ],
)
def test_the_file_is_the_one_that_is_imported(tmp_path, name, file):
    text = "def f(access): return __file__\n"
    write(tmp_path, mine=text, pack____init__=text, pack__inner=text, plain__inner=text)
    assert found(tmp_path, name).where == str(tmp_path / file)
    assert Importer().function(name, tmp_path)(None) == str(tmp_path / file)


def test_packages_on_the_path_are_entered_without_being_run(tmp_path, monkeypatch):
    write(tmp_path, loud____init__=LOUD, loud__inner=LOUD + "def f(access): pass")
    monkeypatch.syspath_prepend(tmp_path)
    here = tmp_path / "elsewhere"
    here.mkdir()
    assert found(here, "loud.inner:f").where == str(tmp_path / "loud/inner.py")
    assert "loud" not in sys.modules
    for name in ("loud.nope:f", "loud.inner.deep:f", "nope:f", "nope.inner:f"):
        with pytest.raises(PolicyError, match="there is no module"):
            found(here, name)


@pytest.mark.parametrize(
    "name", "os os.path json json.decoder re math time sys zlib dataclasses collections.abc".split()
)
def test_whatever_the_importer_finds_is_found_or_unsure(tmp_path, name):
    module = importlib.import_module(name)
    lookup = NameLookup()
    for attribute, value in vars(module).items():
        if callable(value) and attribute.isidentifier() and not attribute.startswith("__"):
            lookup.function(f"{name}:{attribute}", tmp_path)
    assert lookup.found


def test_what_no_source_says_is_said(tmp_path, monkeypatch):
    write(tmp_path, one="")
    monkeypatch.syspath_prepend(tmp_path)
    assert found(tmp_path, "sys:exit").unsure == "the module is built-in"
    assert "one is not a package" in found(tmp_path / "elsewhere", "one.inner:f").unsure


@pytest.mark.parametrize(
    ("source", "piece"),
    [
        (b"def f(:", "SyntaxError"),
        (b"x = '\xff'", "cannot parse the module"),
        (b"# coding: klingon\nf = 1", "klingon"),
        (b"f = 1\0", "cannot parse the module"),
        (b"f = " + b"(" * 5000 + b")" * 5000, "cannot parse the module"),
        (b"f = " + b"-" * 200_000 + b"1", "cannot parse the module"),
    ],
)
def test_what_is_no_python_is_one_line(tmp_path, source, piece):
    (tmp_path / "mine.py").write_bytes(source)
    with pytest.raises(PolicyError) as caught:
        found(tmp_path, "mine:f")
    assert piece in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_fifo_is_no_module(tmp_path):
    os.mkfifo(tmp_path / "mine.py")
    with pytest.raises(PolicyError, match="there is no module 'mine'"):
        found(tmp_path, "mine:f")


POLICY = """\
[[rule]]
msr = 0x5000
read = { python = "mine:f" }

[[rule]]
msr = [0x5001, "0x6000-0x7000"]
read = { model = "mine:Model", watts = 9, class = [1, 2.5] }
"""


def test_a_policy_whose_modules_were_not_run_can_be_looked_at(tmp_path):
    write(tmp_path, mine=LOUD + "def f(access): pass\nclass Model: pass\n")
    (tmp_path / "p.toml").write_text(POLICY)
    lookup = NameLookup()
    policy = load_policy(tmp_path / "p.toml", finder=lookup)
    assert [one.is_model for one in lookup.found.values()] == [False, True]
    assert "registers and parameters were not checked" in str(lookup.found["mine:Model"])
    assert len(compile_policy(policy).relied_on()) == 3
    text = to_toml(policy)
    assert 'read = { model = "mine:Model", watts = 9, class = [1, 2.5] }' in text
    (tmp_path / "again.toml").write_text(text)
    again = to_toml(load_policy(tmp_path / "again.toml", finder=NameLookup()))
    assert re.sub("#.*", "", again) == re.sub("#.*", "", text)
    with pytest.raises(BrokenInvariantError, match="was looked up but not imported"):
        policy.rules[0].read.function(None)


def test_a_model_for_both_directions_is_looked_up_too(tmp_path):
    write(tmp_path, mine=LOUD + "class Model: pass\n")
    for model in ('"mine:Model"', '{ name = "mine:Model", watts = 9 }'):
        (tmp_path / "p.toml").write_text(f"[[rule]]\nmsr = 0x5000\nmodel = {model}\n")
        policy = load_policy(tmp_path / "p.toml", finder=NameLookup())
        (tmp_path / "again.toml").write_text(to_toml(policy))
        again = load_policy(tmp_path / "again.toml", finder=NameLookup())
        assert str(again.rules[0].read) == str(again.rules[0].write) == "model mine:Model"
    (tmp_path / "p.toml").write_text('[[rule]]\nmsr = 1\nmodel = { name = "mine:Modle" }\n')
    (error,) = read_policy(tmp_path / "p.toml", finder=NameLookup()).errors
    assert (error.line, error.key) == (3, "rule[0].model")
    assert "has no Class 'Modle'" in str(error)


def test_names_that_are_not_there_are_all_reported(tmp_path):
    write(tmp_path, mine="")
    (tmp_path / "p.toml").write_text(POLICY.replace("watts", '"no watts"'))
    reading = read_policy(tmp_path / "p.toml", finder=NameLookup())
    assert [error.line for error in reading.errors] == [3, 7]
    assert "has no function 'f'" in str(reading.errors[0])
    assert "has no Class 'Model'" in str(reading.errors[1])
    write(tmp_path, mine="class Model: pass")
    errors = read_policy(tmp_path / "p.toml", finder=NameLookup()).errors
    assert "'no watts' is not the name of a parameter" in str(errors[1])
