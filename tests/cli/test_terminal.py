"""What policies, handlers and file names say reaches the terminal as text, in its own line."""

import json

import pytest

from tests.cli.test_cli import LIST
from tests.command import kvmsr

EVIL = "\x1b[2J\u202e\r\nkvmsr: forged \x9b1m"
TAME = r"\x1b[2J\u202e\r\nkvmsr: forged \x9b1m"
QUOTED = json.dumps(EVIL)  # JSON's escapes are TOML's


def safe(texts):
    """Hold what was printed to lines of text, and return it."""
    for line in "".join(texts).split("\n"):
        assert line.isprintable(), line
        assert not line.startswith("kvmsr: forged"), line
    return "".join(texts)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine.py").write_text(
        f"def read(access):\n    raise ValueError({EVIL!r})\n\n"
        f"def bad(access):\n    return {EVIL!r}\n"
    )
    (tmp_path / f"{EVIL}.toml").write_text(
        f"[policy]\nname = {QUOTED}\ndescription = {QUOTED}\n"
        '[[rule]]\nmsr = 0x35\nread = { python = "mine:read" }\nlog = "always"\n'
        '[[rule]]\nmsr = 0x36\nread = { python = "mine:bad" }\n'
        '[[rule]]\nmsr = 0x37\nread = { value = 1 }\nlog = "always"\n'
        '[[rule]]\nmsr = 0x38\nread = "stop"\n'
    )
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        f"{QUOTED} = 1",
        f"[policy]\nextends = [{QUOTED}]",
        f'[policy]\nextends = ["preset:"{QUOTED[1:]}]'.replace('""', ""),
        f"[defaults]\nunknown = {QUOTED}",
        f"[[rule]]\nmsr = {QUOTED}\nread = 'fault'",
        f"[[rule]]\nmsr = 1\nread = {QUOTED}",
        f"[[rule]]\nmsr = 1\n{QUOTED} = 1",
        f"[[rule]]\nmsr = 1\nread = {{ python = {QUOTED} }}",
        f"[[rule]]\nmsr = 1\nread = {{ model = {QUOTED} }}",
        f"[[rule]]\nmsr = 1\nread = {{ model = 'thermal', {QUOTED} = 1 }}",
        f"[[rule]]\nmsr = 1\nread = 'shadow'\nbits = {{ {QUOTED} = 'rw' }}",
        f"[[rule]]\nmsr = 1\nread = 'fault'\nwhen = {{ rip = {QUOTED} }}",
    ],
)
def test_what_is_wrong_with_a_policy(tmp_path, line):
    file = tmp_path / f"{EVIL}.toml"
    file.write_text(line)
    assert safe(kvmsr("policy", "show", file, status=3)).startswith(f"kvmsr: {tmp_path}/{TAME}")
    said = safe(kvmsr("policy", "check", file, status=3))
    assert said.startswith(f"error: {tmp_path}/{TAME}")
    report = json.loads(kvmsr("policy", "check", file, "--json", status=3)[0])
    assert report["policies"][0]["file"] == str(file)


@pytest.mark.parametrize(
    "words", [["check"], ["show"], ["show", "--toml"], ["explain", "0x35", "--policy"], ["filter"]]
)
def test_what_is_shown_of_a_policy(folder, words):
    said = safe(kvmsr("policy", *words, folder / f"{EVIL}.toml"))
    assert words == ["filter"] or "u202e" in said


def test_what_a_run_says(folder):
    words = ["run", "--backend", "soft", LIST, "--append", "35 36 37 38"]
    words += ["--policy", folder / f"{EVIL}.toml", "--serial", folder / "console"]
    out, err = kvmsr(*words, status=6)
    safe([out, err])
    assert f": 0x1 ({TAME}.toml:11; unknown)" in err  # the log
    assert r"raised ValueError: \x1b[2J\u202e kvmsr: forged \x9b1m" in out
    assert f"{TAME}.toml:15 stops the run" in out
    report = json.loads(kvmsr(*words, "--json", status=6)[0])
    assert report["policy"] == str(folder / f"{EVIL}.toml")


def test_what_is_wrong_with_an_image(tmp_path):
    image = tmp_path / EVIL
    assert TAME in safe(kvmsr("run", image, status=3))
    image.write_text("no image")
    for words in ([image], ["--bios", image], [LIST, "--initrd", tmp_path / f"no {EVIL}"]):
        assert TAME in safe(kvmsr("run", *words, status=3))
    assert TAME in safe(kvmsr("run", f"--{EVIL}", status=2))
    assert TAME in safe(kvmsr("policy", "import", image, status=3))
