# SPDX-License-Identifier: Apache-2.0
"""A command, as its --help describes it."""

import re

import click
from docutils import nodes

from kvmsr.cli import cli
from tools.site.nodes import block, literal, paragraph, section


def described(name: str) -> list[nodes.Node]:
    """Return what the page of the command *name* says."""
    top = click.Context(cli, info_name="kvmsr")
    command = cli.get_command(top, name)
    assert command is not None
    return parts(click.Context(command, info_name=name, parent=top))


def parts(context: click.Context) -> list[nodes.Node]:
    command = context.command
    made: list[nodes.Node] = [block(usage(context)), *text(command.help or "")]
    made += options(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            below = click.Context(inner, info_name=name, parent=context)
            part = section(below.command_path, name, [below.command_path])
            part += parts(below)
            made.append(part)
    return made + text(command.epilog or "")


def usage(context: click.Context) -> str:
    return " ".join([context.command_path, *context.command.collect_usage_pieces(context)])


def text(said: str) -> list[nodes.Node]:
    """Return help text: paragraphs, and blocks after a line with \\b as they are."""
    made: list[nodes.Node] = []
    for part in re.split(r"\n\s*\n", said):
        lines = part.strip("\n").splitlines()
        if lines and lines[0].strip() == "\b":
            made += verbatim(lines[1:])
        elif lines:
            made.append(paragraph(" ".join(line.strip() for line in lines)))
    return made


def verbatim(lines: list[str]) -> list[nodes.Node]:
    """Return lines that click leaves as they are; a heading before them is one here, too."""
    made: list[nodes.Node] = []
    if lines and lines[0].endswith(":") and not lines[0].startswith(" "):
        made.append(paragraph(lines.pop(0)))
    if lines:
        least = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        made.append(block("\n".join(line[least:] for line in lines)))
    return made


def options(context: click.Context) -> list[nodes.Node]:
    listed = nodes.definition_list(classes=["options"])
    for param in context.command.get_params(context):
        record = param.get_help_record(context)
        if record is None or "--help" in param.opts:
            continue
        names, about = record
        if not about:
            continue  # an argument: the usage has it
        ids = [f"{context.command_path}{param.opts[0]}".replace(" ", "-")]
        item = nodes.definition_list_item()
        term = nodes.term("", "", literal(names), ids=ids)
        item += [term, nodes.definition("", paragraph(about))]
        listed += item
    return [listed] if listed.children else []
