# SPDX-License-Identifier: Apache-2.0
"""
kvmsr policy import and export
------------------------------

Converts files of other programs to policies, and policies to such files.
"""

import sys
from pathlib import Path

import click

from kvmsr.cli._output import cell, echo, print_json
from kvmsr.cli._policies import FILE, load_unrun
from kvmsr.errors import PolicyError, UsageError
from kvmsr.files import read_regular
from kvmsr.policy.file.formats import FORMATS, Imported, as_policy, export_policy, import_text
from kvmsr.text import counted

__all__ = ("export", "import_")

_MAX_SIZE = 16 << 20
_WIDE = 160
_WRITABLE = [name for name, form in FORMATS.items() if form.write is not None]


@click.command("import", epilog="Example: sudo dmesg | kvmsr policy import - -o quiet-vm.toml")
@click.argument("file", type=click.Path())
@click.option(
    "--format", "form", type=click.Choice(list(FORMATS)), help="The format; by default, detected."
)
@click.option(
    "-o", "--output", type=click.Path(), help="Write the policy here; by default, print it."
)
@click.option("--json", "as_json", is_flag=True, help="Print the statements as JSON.")
def import_(file: str, form: str | None, output: str | None, as_json: bool) -> None:
    """
    Convert a file of another program to a policy.

    Supported are Firecracker's CPU templates, crosvm's --userspace-msr options, Bochs' msrs.def,
    msr-safe's allow lists, and lines of kernel logs and traces. A table on standard error shows
    what becomes of each statement, and what is lost.
    """
    imported = import_text(_read(file), "standard input" if file == "-" else file, form)
    policy = as_policy(imported, "imported" if file == "-" else Path(file).stem)
    if output is not None:
        try:
            Path(output).write_text(policy)
        except OSError as error:
            raise UsageError(f"cannot write {output}: {error.strerror}") from None
    if as_json:
        print_json(_as_dict(imported, policy))
        return
    _print(imported)
    if output is None:
        click.echo(policy, nl=False)


def _read(file: str) -> str:
    try:
        if file == "-":
            data = sys.stdin.buffer.read(_MAX_SIZE + 1)
        else:
            data = read_regular(Path(file), _MAX_SIZE)
    except OSError as error:
        raise PolicyError(f"cannot read the file: {error.strerror}", file=file) from None
    if len(data) > _MAX_SIZE:
        raise PolicyError(f"more than {_MAX_SIZE >> 20} MiB of input", file=file)
    return data.decode("utf-8", "replace")


def _as_dict(imported: Imported, policy: str) -> dict[str, object]:
    return {
        "format": imported.format,
        "statements": [
            {
                "line": each.line,
                "index": None if each.index is None else f"{each.index:#x}",
                "name": each.name,
                "said": each.said,
                "becomes": each.becomes,
                "lost": each.lost,
                "hint": each.hint,
            }
            for each in imported.statements
        ],
        "policy": policy,
    }


def _print(imported: Imported) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, stderr=True, width=None if sys.stderr.isatty() else _WIDE)
    statements = counted(len(imported.statements), "statement")
    console.print(f"{imported.format}: {statements}, {counted(len(imported.rules), 'rule')}")
    table = Table("line", "MSR", "name", "statement", "rule", "lost", "better than 0")
    for each in imported.statements:
        index = "" if each.index is None else f"{each.index:#x}"
        texts = (each.said, each.becomes, each.lost, each.hint)
        table.add_row(str(each.line), index, each.name, *map(cell, texts))
    console.print(table)


@click.command(epilog="Example: kvmsr policy export mine.toml --format msr-safe > allowlist")
@FILE
@click.option("--format", "form", type=click.Choice(_WRITABLE), required=True, help="The format.")
def export(file: str, form: str) -> int:
    """
    Convert a policy to a file of another program.

    Rules that the format cannot express are listed on standard error, and the exit status is 1.
    """
    text, left = export_policy(load_unrun(file), form)
    click.echo(text, nl=False)
    for rule in left:
        echo(f"kvmsr: {form} cannot express the rule {rule.where}", err=True)
    return 1 if left else 0
