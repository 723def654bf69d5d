"""What the documentation shows is true: its examples run, and print what it says."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import click
import pytest

from kvmsr.cli import cli
from kvmsr.policy.file import load_policy
from kvmsr.policy.plan import compile_policy
from tests.conftest import GUESTS, ROOT
from tests.docs.examples import DOCS, blocks, commands, kvmsr_commands, prints, words

WALKS = [
    ROOT / "docs" / f"{name}.md"
    for name in (
        "tutorial/first-policy",
        "howto/qemu",
        "howto/model",
        "howto/compare",
        "howto/fuzz",
    )
]
"""Pages whose examples belong together: they are run in order, in one folder."""

ELSEWHERE = [ROOT / "docs/reference/decode.md"]
"""Pages whose commands tests/docs/test_decode.py runs."""

HARMLESS = {"msr", "decode", "encode", "policy", "trace", "report", "completion"}
SHELL = {"HOME": "/", "LANG": "C.UTF-8", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}


def name(page):
    return str(page.relative_to(ROOT))


def of(language, pages=DOCS):
    return [
        pytest.param(block, id=block.where)
        for page in pages
        for block in blocks(page)
        if block.language == language
    ]


def run(text, folder):
    """Run a command of a page, with the kvmsr of this environment; return it when it has ended."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    return subprocess.run(
        ["sh", "-c", text], cwd=folder, env=SHELL | {"PATH": path}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def check(command, done):
    assert "Traceback" not in done.stderr, (command.where, done.stderr)
    if not any(command.output):
        assert done.returncode in (0, 1), (command.where, command.text, done.stderr)
    else:
        possible = (done.stdout, done.stderr + done.stdout, done.stdout + done.stderr)
        shown = "\n".join(command.output)
        assert any(prints(output, command.output) for output in possible), (
            f"{command.where}: {command.text}\nshows\n{shown}\nprints\n{possible[1]}"
        )


@pytest.mark.parametrize("page", WALKS, ids=name)
def test_a_page_can_be_followed_from_its_beginning_to_its_end(page, tmp_path):
    if "tutorial" not in page.parts:
        shutil.copy(GUESTS / "list.elf", tmp_path)
    for block in blocks(page):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
        elif block.language == "python":
            (tmp_path / "example.py").write_text(block.text)
            done = run("python3 example.py", tmp_path)
            assert done.returncode == 0, (block.where, done.stderr)
        elif block.text.startswith("$ "):
            for command in commands(block):
                done = run(command.text, tmp_path)
                check(command, done)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with what commands in the documentation read: policies, and two traces."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(GUESTS / "list.elf", folder)
    demo = (GUESTS / "demo.toml").read_text()
    (folder / "demo.toml").write_text(demo)
    other = demo.replace("value = 0x20004", "value = 0x40008").replace("reset = 6", "reset = 7")
    assert other != demo
    (folder / "other.toml").write_text(other)
    for policy in ("quiet", "mine"):
        (folder / f"{policy}.toml").write_text('[defaults]\nunknown = "ignore"\n')
    msrs = "0x35 0x277 0x1b0 0x1b0=0xf 0x1b0 0x1ad 0xc0000080 0x12345678"
    for policy in ("demo", "other"):
        text = f"kvmsr run list.elf --backend soft --append '{msrs}' --policy {policy}.toml"
        done = run(f"{text} --trace {policy}.arrows --trace-rip", folder)
        assert done.returncode == 0, done.stderr
    for copy in ("boot", "before", "after"):
        shutil.copy(folder / "demo.arrows", folder / f"{copy}.arrows")
    return folder


def runnable(command, folder):
    """Return whether a command reads nothing but what *folder* has, and changes nothing else."""
    cannot = r"--(verify|follow)|…|\b(FILE|INDEX|NAME)\b"
    if not command.text.startswith("kvmsr ") or re.search(cannot, command.text):
        return False
    given = words(command.text)
    written = given[given.index("-o") + 1] if "-o" in given else ""
    read = [word for word in given if re.search(r"\.(toml|arrows)$|^vmlinuz$", word)]
    there = all((folder / file).exists() for file in read if file != written)
    return given[1] in HARMLESS and "replay" not in given and there


@pytest.mark.parametrize(
    "page", [page for page in DOCS if page not in [*WALKS, *ELSEWHERE]], ids=name
)
def test_commands_run_and_print_what_is_shown(page, folder):
    for block in blocks(page):
        mine = (folder / "mine.toml").read_text()
        for policy in blocks(page):
            if policy.file:
                (folder / policy.file).write_text(policy.text)
        for command in commands(block) if block.language in ("", "console") else ():
            if command.text.startswith("kvmsr ") and runnable(command, folder):
                done = run(command.text, folder)
                check(command, done)
        (folder / "mine.toml").write_text(mine)


@pytest.mark.parametrize("page", DOCS, ids=name)
def test_commands_have_the_options_that_pages_name(page):
    for command in kvmsr_commands(page):
        parse(words(command.text.removeprefix("sudo "))[1:], command)


def test_inline_commands_have_the_options_that_pages_name():
    for page in DOCS:
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for text in re.findall(r"`(kvmsr [a-z][^`]* --?[^`]*)`", prose):
            parse(words(text.replace("\n", " "))[1:], text)


def parse(given, command):
    """Have click split the words of a command; it knows its options."""
    context = click.Context(cli, info_name="kvmsr")
    group = cli
    while isinstance(group, click.Group) and given and not given[0].startswith("-"):
        found = group.get_command(context, given[0])
        assert found is not None, command
        group, given = found, given[1:]
        if isinstance(group, click.Group):  # kvmsr ctl has an argument before its command
            given = given[sum(isinstance(each, click.Argument) for each in group.params) :]
        context = click.Context(group, info_name=group.name, parent=context)
    with suppress(click.BadOptionUsage):  # a page may name an option without its value
        group.make_parser(context).parse_args(list(given))


@pytest.mark.parametrize("block", of("python", [page for page in DOCS if page not in WALKS]))
def test_python_examples_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guest.bin").write_bytes(b"\xb0\x00\xe6\xf4")
    exec(compile(block.text, block.where, "exec"), {"__name__": "example"})


def test_python_examples_are_typed(tmp_path, pytestconfig):
    for page in DOCS:
        for block in blocks(page):
            if block.language == "python":
                file = block.file or re.sub(r"\W", "_", block.where) + ".py"
                assert not (tmp_path / file).exists(), file
                (tmp_path / file).write_text(block.text)
    cache = pytestconfig.cache.mkdir("mypy")
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", cache]
    done = subprocess.run([*mypy, "."], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", of("toml", [page for page in DOCS if page not in WALKS]))
def test_policies_are_read_and_compiled(block, tmp_path):
    (tmp_path / "mine.py").write_text("def on_bias(access): return 6\non_write = print\n")
    (tmp_path / "base.toml").write_text("")
    (tmp_path / "policy.toml").write_text(block.text)
    compile_policy(load_policy(tmp_path / "policy.toml"))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_examples_compile_without_a_warning(path):
    plan = compile_policy(load_policy(path))
    assert plan.warnings == ()
    assert len(plan.filter.ranges) <= 16
