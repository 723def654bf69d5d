"""What the documentation has of examples: code blocks, commands, and what they print."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from markdown_it import MarkdownIt

from tests.conftest import ROOT

DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMED = re.compile(r"\bto\s`([\w.-]+)`")
VARIES = (
    (re.compile(r"\d[\d.,]* (µs|ms|s)\b"), "# s"),
    (re.compile(r"\b\d+\.\d{3,}\b"), "#"),
    (re.compile(r"(?<![\w.])\d{4,}(?![\w.])"), "#"),
    (re.compile(r"(?<=│) +[\d#][\d.,# …]*(?= │)"), "#"),
    (re.compile(r"[━─]+"), "─"),
)
"""What varies of what is printed: times, process IDs, a table's numbers and its width."""


@dataclass
class Block:
    """A code block, its language, and the paragraph before it."""

    page: Path
    line: int
    language: str
    text: str
    before: str

    @property
    def file(self) -> str:
        """The file that the page says to write this to, or ""."""
        found = NAMED.findall(self.before) if self.language else []
        return found[-1] if found else ""

    @property
    def where(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass
class Command:
    """A command, and what a page shows of its output: None if it shows nothing."""

    where: str
    text: str
    output: list[str] = field(default_factory=list)


def blocks(page: Path) -> list[Block]:
    """Return the code blocks of a page."""
    found, before = [], ""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        if token.type == "inline":
            before = token.content
        elif token.type in ("fence", "code_block"):
            found.append(Block(page, token.map[0] + 1, token.info, token.content, before))
    return found


def commands(block: Block) -> list[Command]:
    """Return the commands of a block: its lines after ``$``, or all of them, if none has one."""
    prompt = "$ " if re.search(r"^\$ ", block.text, re.MULTILINE) else ""
    found: list[Command] = []
    for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
        if line.startswith(prompt) and line.strip():
            found.append(Command(block.where, line.removeprefix(prompt)))
        elif found:
            found[-1].output.append(line)
    return found


def kvmsr_commands(page: Path) -> list[Command]:
    """Return the commands of a page that start kvmsr, in its code blocks that are no files."""
    shell = [block for block in blocks(page) if block.language in ("", "console")]
    every = [command for block in shell for command in commands(block)]
    return [command for command in every if re.match(r"(sudo )?kvmsr ", command.text)]


def words(command: str) -> list[str]:
    """Return the words of a command up to a pipe or a redirection; "…" stands for more of them."""
    found = []
    for word in shlex.split(command, comments=True):
        if word in ("|", ">", "&&", ";"):
            break
        if word not in ("…", "..."):
            found.append(word)
    return found


def prints(output: str, shown: list[str]) -> bool:
    """Return whether *output* is what a page shows; there "…" stands for anything."""
    pattern = re.escape(same("\n".join(shown))).replace("…", ".*")
    return re.fullmatch(pattern, same(output), re.DOTALL) is not None


def same(text: str) -> str:
    """Return *text* without what varies from run to run."""
    for pattern, instead in VARIES:
        text = pattern.sub(instead, text)
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)
