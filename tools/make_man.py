#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""
Write kvmsr's man pages into a folder, one for each command: kvmsr.1, kvmsr-run.1 and so on.

    .venv/bin/python tools/make_man.py build/man

Names, options and examples are those of the commands' help, exit statuses those of
docs/reference/exit-status.md. What neither says, files and variables, is here. click-man, which
makes man pages of click's commands, has no sections for any of these but the first two.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from kvmsr import __version__
from kvmsr.cli import cli

ROOT = Path(__file__).resolve().parent.parent
STATUSES = ROOT / "docs/reference/exit-status.md"
CHANGES = ROOT / "CHANGELOG.md"

GUESTS = ("run", "demo", "trace replay")
VMMS = ("exec", "wrap")
TABLES = {**dict.fromkeys(GUESTS, "Running a guest"), "exec": "Running another VMM"}
"""The heading in docs/reference/exit-status.md for commands with statuses of their own."""

_POLICIES = (*GUESTS, *VMMS, "ctl policy", "policy")
FILES = (
    ("/dev/kvm", "Linux's KVM. It must be readable and writable.", (*GUESTS, *VMMS, "doctor")),
    (
        "/dev/cpu/N/msr",
        "The host's own registers, for rules with the action host.",
        ("run", "exec", "wrap"),
    ),
    (
        "FILE.toml",
        "A policy. preset:NAME in its place is one that comes with kvmsr: see"
        " `kvmsr policy presets`.",
        _POLICIES,
    ),
    (
        "FILE.arrows",
        "A trace: a stream of Apache Arrow's IPC format.",
        ("run", *VMMS, "trace", "report"),
    ),
)  # fmt: skip
VARIABLES = (
    ("KVMSR_DEBUG", "If it is set, errors are logged with their tracebacks.", ("",)),
    (
        "KVMSR_LIBPYTHON",
        "The path of Python's shared library, for --backend soft; by default, where Python has it.",
        VMMS,
    ),
    ("NO_COLOR", "If it is set, the output has no colours.", (*GUESTS, "doctor")),
)  # fmt: skip
"""What a page has under FILES and ENVIRONMENT: for these commands, and those below them."""


class Page(NamedTuple):
    """
    A command, and what is said of it.

    :ivar words: its name, without kvmsr.
    :ivar command: what click knows.
    :ivar context: for click's functions.
    """

    words: tuple[str, ...]
    command: click.Command
    context: click.Context

    @property
    def name(self) -> str:
        return "-".join(("kvmsr", *self.words))

    @property
    def path(self) -> str:
        return " ".join(("kvmsr", *self.words))

    def is_for(self, commands: tuple[str, ...]) -> bool:
        """Return whether it is one of *commands*, or below one of them."""
        names = [" ".join(self.words[:depth]) for depth in range(len(self.words) + 1)]
        return any(name in commands for name in names)


def pages() -> Iterator[Page]:
    """Yield each command, a group before what is in it."""
    context = click.Context(cli, info_name="kvmsr", **cli.context_settings)
    yield from _below(Page((), cli, context))


def _below(page: Page) -> Iterator[Page]:
    yield page
    if isinstance(page.command, click.Group):
        for name in page.command.list_commands(page.context):
            command = page.command.get_command(page.context, name)
            assert command is not None
            context = click.Context(command, info_name=name, parent=page.context)
            yield from _below(Page((*page.words, name), command, context))


# Troff


def text(words: str) -> str:
    """Return *words* so that troff shows them as they are; `…` is bold."""
    shown = words.replace("\\", "\\e").replace("-", "\\-")
    shown = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", shown)
    return re.sub(r"^([.'])", r"\\&\1", shown, flags=re.MULTILINE)


def term(words: str) -> str:
    """Return the term of a list, with the names of options and commands in bold."""
    return re.sub(
        r"(?<![\w\\])((?:\\-){1,2}\w(?:[\w]|\\-)*|^[\w/.\\-]+)", r"\\fB\1\\fR", text(words)
    )


def section(name: str, *lines: str) -> list[str]:
    return [f".SH {name}", *lines] if lines else []


def entries(rows: list[tuple[str, str]]) -> list[str]:
    """Return a list of terms, each with what is said of it."""
    return [line for name, says in rows for line in (".TP", term(name), text(says))]


# Sections


def render(page: Page) -> str:
    """Return the page's source."""
    first, *paragraphs = _paragraphs(page.command.help or "")
    lines = [
        f'.TH {text(page.name).upper()} 1 "{_date()}" "kvmsr {__version__}" "kvmsr"',
        *section("NAME", f"{text(page.name)} \\- {text(_lower(first))}"),
        *section("SYNOPSIS", *_synopsis(page)),
        *section("DESCRIPTION", *_flowing([first, *paragraphs])),
        *section("OPTIONS", *entries(_options(page))),
        *section("COMMANDS", *entries(_commands(page))),
        *section("EXAMPLES", *_examples(page)),
        *section("EXIT STATUS", *entries(statuses(TABLES.get(" ".join(page.words))))),
        *section("FILES", *entries(_said(page, FILES))),
        *section("ENVIRONMENT", *entries(_said(page, VARIABLES))),
        *section("SEE ALSO", _see_also(page)),
    ]
    return "\n".join(lines) + "\n"


def _paragraphs(help_: str) -> list[str]:
    lines = "\n".join(line.strip() for line in help_.strip().split("\n"))
    return [" ".join(one.split()) for one in lines.split("\n\n")]


def _flowing(paragraphs: list[str]) -> list[str]:
    return [line for one in paragraphs for line in (".PP", text(one))][1:]


def _lower(sentence: str) -> str:
    """Return *sentence* as NAME has it: without a capital and a full stop."""
    return sentence[0].lower() + sentence[1:].rstrip(".")


def _synopsis(page: Page) -> list[str]:
    pieces = page.command.collect_usage_pieces(page.context)
    return [f"\\fB{text(page.path)}\\fR {text(' '.join(pieces))}"]


def _options(page: Page) -> list[tuple[str, str]]:
    options = [
        one for one in page.command.get_params(page.context) if isinstance(one, click.Option)
    ]
    records = filter(None, (one.get_help_record(page.context) for one in options))
    return [(name, " ".join(says.split())) for name, says in records]


def _commands(page: Page) -> list[tuple[str, str]]:
    below = [one for one in pages() if one.words[:-1] == page.words and one.words]
    return [(f"{one.name}(1)", _paragraphs(one.command.help or "")[0]) for one in below]


def _examples(page: Page) -> list[str]:
    lines = (page.command.epilog or "").replace("\b", "").strip().split("\n")
    lines[0] = re.sub(r"^(Examples?|Try): *", "", lines[0])
    commands = [text(line.strip()) for line in lines if line.strip()]
    return [".EX", *commands, ".EE"] if commands else []


def statuses(heading: str | None = None) -> list[tuple[str, str]]:
    """Return the rows of the table under *heading* in docs/reference/exit-status.md."""
    _, _, rest = STATUSES.read_text().partition(f"## {heading or 'Every command'}\n")
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", rest.partition("\n## ")[0], re.MULTILINE)
    plain = [tuple(re.sub(r"\[(.+?)\]\(.+?\)", r"\1", cell) for cell in row) for row in rows[1:]]
    return [(status, f"{says[0].upper()}{says[1:]}.") for status, says in plain]


def _said(page: Page, rows: tuple[tuple[str, str, tuple[str, ...]], ...]) -> list[tuple[str, str]]:
    return [(name, says) for name, says, commands in rows if page.is_for(commands)]


def _see_also(page: Page) -> str:
    """Return the page above, and the pages beside or below."""
    near = page.words if isinstance(page.command, click.Group) else page.words[:-1]
    names = [
        one.name
        for one in pages()
        if one.words != page.words
        and (one.words[:-1] == near or one.words == page.words[: len(one.words)])
    ]
    return ", ".join(f"\\fB{text(name)}\\fR(1)" for name in names)


def _date() -> str:
    """Return the day on which this version was released, or "" if it has not been yet."""
    found = re.search(rf"^## {re.escape(__version__)} - (\S+)$", CHANGES.read_text(), re.MULTILINE)
    return found[1] if found else ""


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for page in pages():
        (folder / f"{page.name}.1").write_text(render(page))


if __name__ == "__main__":
    main()
