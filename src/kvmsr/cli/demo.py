# SPDX-License-Identifier: Apache-2.0
"""
kvmsr demo
----------

The first thing to try: a guest, a policy, and the table of the guest's MSR accesses.
"""

from contextlib import ExitStack
from importlib import resources
from pathlib import Path

import click

from kvmsr.cli._parameters import MemorySize
from kvmsr.cli.run import run_guest
from kvmsr.machine import Boot
from kvmsr.machine.choice import choose_backend
from kvmsr.policy.file import load_policy

__all__ = ("command",)

_MSRS = "0x35 0x277 0x1b0 0x1b0=0xf 0x1b0 0x1ad 0xc0000080 0x12345678"

_APPEND = "console=ttyS0 panic=-1"


@click.command(epilog="Example: kvmsr demo --kernel /boot/vmlinuz --policy my.toml")
@click.option(
    "--kernel",
    type=click.Path(path_type=Path),
    help="A Linux bzImage to boot instead of the small guest that comes with kvmsr.",
)
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    help="A policy to use instead of the small one that comes with kvmsr.",
)
@click.option(
    "--memory", type=MemorySize(), default="512M", show_default=True, help="The amount of RAM."
)
@click.option(
    "--timeout", type=float, default=300, show_default=True, metavar="S",
    help="End the run after S seconds.",
)  # fmt: skip
def command(kernel: Path | None, policy: Path | None, memory: int, timeout: float) -> int:
    """
    Run a small guest, or boot a Linux kernel, under a small policy.

    The guest runs on the soft backend if this host's KVM does not run ordinary guests.
    """
    backend, why_soft = choose_backend()
    with ExitStack() as stack:
        data = resources.files("kvmsr.machine").joinpath("guests")
        image = kernel or stack.enter_context(resources.as_file(data / "list.elf"))
        file = policy or stack.enter_context(resources.as_file(data / "demo.toml"))
        append = _APPEND if kernel else _MSRS
        if why_soft:
            click.echo(f"On the soft backend: {why_soft}.\n")
        if kernel is None:
            click.echo(
                "This is the small guest that comes with kvmsr; boot a kernel with --kernel.\n"
            )
        click.echo(f"policy {file}:\n")
        click.echo("".join(f"    {line}\n" for line in file.read_text().splitlines()))
        click.echo(f"guest {image.name}, command line: {append}\n")
        run_guest(
            Boot(image, append),
            load_policy(file),
            backend=backend,
            memory=memory,
            timeout=timeout,
        )
    return 0
