"""What the documentation shows is true: its examples run, its policies are read."""

import re
import subprocess
import sys

import pytest

from kvmsr.policy.file import load_policy
from kvmsr.policy.plan import compile_policy
from tests.conftest import ROOT

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(language):
    """Return the code blocks of a language, in all of the documentation."""
    found = []
    for path in DOCS:
        for n, text in enumerate(
            re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL)
        ):
            found.append(pytest.param(text, id=f"{path.name}-{n}"))
    return found


@pytest.mark.parametrize("text", blocks("python"))
def test_python_examples_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guest.bin").write_bytes(b"\xb0\x00\xe6\xf4")
    exec(compile(text, "example", "exec"), {"__name__": "example"})


def test_python_examples_are_typed(tmp_path, pytestconfig):
    for example in blocks("python"):
        name = re.sub(r"\W", "_", example.id)
        (tmp_path / f"{name}.py").write_text(example.values[0])
    cache = pytestconfig.cache.mkdir("mypy")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", cache]
    done = subprocess.run([*mypy, "."], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", blocks("toml"))
def test_policies_are_read_and_compiled(text, tmp_path):
    (tmp_path / "mine.py").write_text("def on_bias(access): return 6\non_write = print\n")
    (tmp_path / "base.toml").write_text("")
    (tmp_path / "policy.toml").write_text(text)
    compile_policy(load_policy(tmp_path / "policy.toml"))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_examples_compile_without_a_warning(path):
    plan = compile_policy(load_policy(path))
    assert plan.warnings == ()
    assert len(plan.filter.ranges) <= 16


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target
