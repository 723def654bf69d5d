# SPDX-License-Identifier: Apache-2.0
"""
Command line
------------

The command ``kvmsr``: one module a command, imported when it is called.
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

# In the order in which people meet them; the help stands here too, so that listing the commands
# imports none of them.
_COMMANDS: Final = {
    "run": "Run a guest and show every MSR it touched.",
    "exec": "Run another VMM, QEMU say, with its guests under a policy.",
    "ctl": "Change the policy of a VMM that runs, save and load its registers.",
    "wrap": "Write a script that starts a VMM under a policy.",
    "policy": "Check, show, explain, import and export policies.",
    "msr": "Tell what an MSR is, and what KVM does with it.",
    "decode": "Show the fields of an MSR's value, and reserved bits that are set.",
    "encode": "Put an MSR's value together: fields by number, or by what they mean.",
    "doctor": "Tell what this host offers, and what is missing.",
    "demo": "Run a small guest under a small policy, or boot a Linux kernel (--kernel).",
    "completion": "Print the completion script of a shell.",
}

_INTERRUPTED: Final = 130


class _Commands(click.Group):
    """The commands, each imported on first use: ``--help`` and completion stay fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which people meet them."""
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
    """A policy for every model-specific register a KVM guest touches."""


_DEBUG: Final = "KVMSR_DEBUG"
"""An environment variable: if it is set, what goes wrong is told at length."""


def main(args: list[str] | None = None) -> None:
    """Run the command line and exit with its status; errors are one line each."""
    if os.environ.get(_DEBUG):
        import logging

        logging.basicConfig(level=logging.DEBUG)
    sys.exit(_status(args))


def _status(args: list[str] | None) -> int:
    try:
        result: Any = cli.main(args, prog_name="kvmsr", standalone_mode=False)
    except click.ClickException as error:
        error.message = one_line(error.message)  # type: ignore[misc]  # what it quotes was typed
        error.show()
        return error.exit_code
    except click.Abort:
        return _INTERRUPTED
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; say nothing more, not even when Python flushes.
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
            f"kvmsr itself failed, please report it ({_DEBUG}=1 says more): {what}", err=True
        )
        return 1
    return result if isinstance(result, int) else 0


def _log_failure() -> None:
    import logging

    logging.getLogger(__name__).debug("failed", exc_info=True)
