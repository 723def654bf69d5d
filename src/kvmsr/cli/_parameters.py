# SPDX-License-Identifier: Apache-2.0
"""
Parameters
----------

The types of the commands' parameters, with completion for shells.
"""

import re
from pathlib import Path
from typing import Any, Final, cast

import click
from click.shell_completion import CompletionItem

from kvmsr.errors import GuestMemoryError, UnknownMsrError, UsageError
from kvmsr.msr import Cpu, catalog, cpu_names, find_cpu
from kvmsr.text import shown

__all__ = (
    "CPU",
    "CTL_COMMANDS",
    "LOG",
    "NAME",
    "OBSERVE",
    "POLICY",
    "STATE",
    "CpuSpec",
    "DiskFile",
    "MemorySize",
    "MsrIndex",
    "Number",
    "PolicyFile",
    "Preset",
    "RunName",
    "Selection",
    "Target",
)  # fmt: skip


class PolicyFile(click.ParamType[str]):
    """A policy file, or ``preset:NAME``."""

    name = "FILE"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete presets and files."""
        from kvmsr.policy.file.parse import PRESET
        from kvmsr.policy.file.presets import preset_names

        presets = [f"{PRESET}{name}" for name in preset_names()]
        fitting = [CompletionItem(name) for name in presets if name.startswith(incomplete)]
        return [*fitting, CompletionItem(incomplete, type="file")]


class MemorySize(click.ParamType[int]):
    """An amount of RAM, such as 256M."""

    name = "SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return *value* in bytes."""
        from kvmsr.machine.arguments import to_size
        from kvmsr.machine.layout import Layout

        size = to_size(value, "--memory")
        try:
            Layout.of(size)
        except GuestMemoryError as error:
            raise UsageError(f"--memory={value}: {error}") from None
        return size


class DiskFile(click.ParamType[Any]):
    """A disk image: FILE, or ``FILE,write``."""

    name = "FILE[,write]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the disk."""
        from kvmsr.machine import Disk

        if not isinstance(value, str):
            return value
        file, comma, word = value.rpartition(",")
        if comma and word == "write":
            return Disk(Path(file), write=True)
        if comma and not Path(value).exists():
            raise UsageError(f"--disk {shown(value)}: write FILE, or FILE,write")
        return Disk(Path(value))

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete files."""
        return [CompletionItem(incomplete, type="file")]


class Number(click.ParamType[int]):
    """An unsigned 64-bit number, such as 0x35 or 53."""

    name = "NUMBER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return *value* as an int."""
        if isinstance(value, int):
            return value
        try:
            number = int(value, 0)
        except ValueError:
            raise UsageError(f"{value!r} is not a number: write 0x35 or 53") from None
        if not 0 <= number < 1 << 64:
            raise UsageError(f"{value} is out of range: it does not fit in 64 bits")
        return number


class MsrIndex(click.ParamType[int]):
    """An MSR, by number or name."""

    name = "MSR"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the index of the MSR."""
        if isinstance(value, int):
            return value
        try:
            index = int(value, 0)
        except ValueError:
            try:
                return catalog().lookup(value).index
            except UnknownMsrError as error:
                raise UsageError(str(error)) from None
        if not 0 <= index < 1 << 32:
            raise UsageError(f"{value} is out of range: MSRs go from 0 to 0xffffffff")
        return index

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete names of MSRs: those of the CPU that --cpu has named before, or all."""
        wanted, cpu = incomplete.lower(), ctx.params.get("cpu")
        names = {
            msr.name: f"{msr.index:#x}"
            for msr in catalog().match(f"{wanted}*")
            if msr.name.lower().startswith(wanted)
            and (not isinstance(cpu, Cpu) or msr.holds_on(cpu))
        }
        return [CompletionItem(name, help=index) for name, index in names.items()]


class CpuSpec(click.ParamType[Cpu]):
    """A CPU: a signature, a code name, ``host``, or a file with a CPUID dump."""

    name = "CPU"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Cpu:
        """Return the CPU."""
        if not isinstance(value, str):
            return cast(Cpu, value)
        try:
            return find_cpu(value)
        except UsageError as error:
            raise UsageError(f"--cpu {value}: {error}") from None

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete code names, and the names of files."""
        known = {"host": "this machine's CPU"}
        known |= {name: str(sets[0]) for name, sets in cpu_names().items()}
        wanted = incomplete.lower()
        names = [CompletionItem(n, help=said) for n, said in known.items() if n.startswith(wanted)]
        return names or [CompletionItem(incomplete, type="file")]


class Preset(click.ParamType[str]):
    """The name of a preset."""

    name = "NAME"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete names of presets."""
        from kvmsr.policy.file.presets import preset_names

        return [CompletionItem(name) for name in preset_names() if name.startswith(incomplete)]


CTL_COMMANDS: Final = (
    "load", "policy", "reset", "save", "show", "status", "stop", "summary", "undo",
)  # fmt: skip
"""The commands of kvmsr ctl, which no run may have as its name."""


class Target(click.ParamType[str]):
    """A run, by its name or process ID."""

    name = "PID|NAME"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete names and process IDs of this user's runs."""
        from kvmsr.session.control import runs

        found = [(word, one) for one in runs() for word in (one["name"], str(one["pid"])) if word]
        return [
            CompletionItem(word, help=one["command"])
            for word, one in found
            if word.startswith(incomplete)
        ]


class RunName(click.ParamType[str]):
    """A name for a run, which kvmsr ctl can tell from a process ID."""

    name = "NAME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return *value* if it is a name."""
        name = str(value)
        if name and not re.fullmatch(r"[A-Za-z_][\w.:+-]{0,63}", name, re.ASCII):
            raise UsageError(
                f"--name {shown(name)}: a name begins with a letter and has up to 64 letters,"
                " digits, and characters of _ . : + -"
            )
        if name in CTL_COMMANDS:
            raise UsageError(f"--name {name}: that is a command of kvmsr ctl; choose another name")
        return name


class Selection(click.ParamType[Any]):
    """MSRs, as a policy's rules select them, with commas between them; or ``all``."""

    name = "MSRS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the MSRs as ranges."""
        from kvmsr.errors import PolicyError
        from kvmsr.policy.policy import parse_observe

        if not isinstance(value, str):
            return value
        try:
            return parse_observe([word.strip() for word in value.split(",")])
        except PolicyError as error:
            raise UsageError(f"--observe {value}: {error}") from None

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Complete the last name, or ``all``."""
        before, comma, last = incomplete.rpartition(",")
        names = MsrIndex().shell_complete(ctx, param, last)
        every = ["all"] if not comma and "all".startswith(incomplete) else []
        return [
            *map(CompletionItem, every),
            *(CompletionItem(f"{before}{comma}{one.value}", help=one.help) for one in names),
        ]


CPU: Final = click.option(
    "--cpu",
    type=CpuSpec(),
    metavar="CPU",
    help="The CPU whose MSRs are meant: intel:06_8F, a code name such as sapphire-rapids or zen4,"
    " host, or a file with a CPUID dump.",
)
OBSERVE: Final = click.option(
    "--observe",
    type=Selection(),
    metavar="MSRS|all",
    default=(),
    help="Also see accesses that KVM handles itself: to these MSRs, or to all for which the guest"
    " cannot notice. MSRS are names, patterns, numbers and ranges, with commas between them.",
)
POLICY: Final = click.option(
    "--policy", type=PolicyFile(), help="The policy: a TOML file, or preset:NAME."
)
LOG: Final = click.option(
    "--log",
    default="-",
    metavar="FILE|-",
    show_default=True,
    help="The log of the accesses that the policy wants logged; - is standard error.",
)
NAME: Final = click.option(
    "--name", type=RunName(), default="", help="A name for kvmsr ctl, in place of the process ID."
)
STATE: Final = click.option(
    "--state",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file that keeps shadowed registers, models and counts from one run to the next.",
)
