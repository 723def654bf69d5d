# SPDX-License-Identifier: Apache-2.0
"""
kvmsr completion
----------------

Prints the script with which a shell completes kvmsr's commands and options.
"""

import click
from click.shell_completion import get_completion_class

__all__ = ("command",)


@click.command(epilog='Example: echo "$(kvmsr completion bash)" >> ~/.bashrc')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print a completion script for your shell."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "kvmsr", "_KVMSR_COMPLETE").source())
