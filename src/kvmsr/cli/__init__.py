# SPDX-License-Identifier: Apache-2.0
"""
Command line
------------

The command ``kvmsr``: one module per command, imported when the command is used.
"""

import importlib
import os
import sys
from typing import Any, Final

import click

from kvmsr._version import __version__
from kvmsr.errors import KvmsrError
from kvmsr.text import error_text, one_line

__all__ = ("cli", "main")

# In the order in which people learn them. The help is here, too, so that listing the commands does
# not import them.
_COMMANDS: Final = {
    "run": "Run a guest and show every MSR that it accessed.",
    "exec": "Run QEMU, or another VMM, with its guests under a policy.",
    "ctl": "Control what runs: replace its policy, save and restore registers, stop it.",
    "top": "Watch a run, and change what happens to its MSRs.",
    "wrap": "Write a script that starts a VMM under a policy, for libvirt.",
    "trace": "Summarise, show, compare, convert and replay traces, and learn policies.",
    "policy": "Check, show, explain, import and export policies.",
    "report": "Write a page about a trace, or about two to compare.",
    "msr": "Describe MSRs, and what KVM does with them.",
    "decode": "Decode an MSR's value into its fields.",
    "encode": "Encode an MSR's value from its fields.",
    "doctor": "Check what this host supports, and how to fix what is missing.",
    "demo": "Run a small guest, or boot a Linux kernel, under a small policy.",
    "completion": "Print a completion script for your shell.",
}

_INTERRUPTED: Final = 130


class _Commands(click.Group):
    """The commands. Each is imported on first use, so that help and completion are fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order in which people learn them."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"kvmsr.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them all."""
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Try: kvmsr doctor && kvmsr demo",
)
@click.version_option(__version__, prog_name="kvmsr")
def cli() -> None:
    """A policy for every model-specific register that a KVM guest accesses."""


_DEBUG: Final = "KVMSR_DEBUG"
"""If this environment variable is set, errors are logged with their tracebacks."""


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with its status. Each error is reported in one line."""
    if os.environ.get(_DEBUG):
        import logging

        logging.basicConfig(level=logging.DEBUG)
    sys.exit(_status(args))


def _status(args: list[str] | None) -> int:
    try:
        result: Any = cli.main(args, prog_name="kvmsr", standalone_mode=False)
    except click.ClickException as raised:
        error = _about_the_whole_word(raised, sys.argv[1:] if args is None else args)
        error.message = one_line(error.message)  # type: ignore[misc]  # what it quotes was typed
        error.show()
        return error.exit_code
    except click.Abort:
        return _INTERRUPTED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Nobody reads our output any more. Print nothing else, not even when Python flushes.
        sys.stdout = None
        return 1
    except KvmsrError as error:
        _log_failure()
        click.echo(f"kvmsr: {error}", err=True)
        return error.exit_status
    except Exception as error:
        _log_failure()
        what = error_text(error)
        click.echo(
            f"kvmsr: this is a bug in kvmsr, please report it ({_DEBUG}=1 shows more): {what}",
            err=True,
        )
        return 1
    return result if isinstance(result, int) else 0


def _about_the_whole_word(error: click.ClickException, words: list[str]) -> click.ClickException:
    """Suggest ``--policy`` for ``-policy``, of which click only reports ``-p``."""
    if not isinstance(error, click.NoSuchOption) or error.ctx is None:
        return error
    known = {option for parameter in error.ctx.command.params for option in parameter.opts}
    for word in words:
        name = word.partition("=")[0]
        if name.startswith(error.option_name) and f"-{name}" in known:
            return click.NoSuchOption(name, possibilities=[f"-{name}"], ctx=error.ctx)
    return error


def _log_failure() -> None:
    import logging

    logging.getLogger(__name__).debug("failed", exc_info=True)
