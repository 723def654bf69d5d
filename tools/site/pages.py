# SPDX-License-Identifier: Apache-2.0
"""
The pages that the code itself is documented by. Each is a heading and a directive, which Sphinx
fills when it reads the page: see extension.py.
"""

import importlib
from typing import NamedTuple

import click

from kvmsr.cli import cli
from kvmsr.msr import catalog


class Range(NamedTuple):
    """A page of MSRs."""

    first: int
    last: int
    about: str

    @property
    def page(self) -> str:
        """The page's name, which stays as it is when MSRs are added."""
        return f"{self.first:#x}"

    @property
    def title(self) -> str:
        return f"{self.first:#x} – {self.last:#x}: {self.about}"


RANGES = (
    Range(0x0, 0xFF, "time stamps, APIC, microcode, first counters"),
    Range(0x100, 0x1FF, "capabilities, SYSENTER, performance events, power"),
    Range(0x200, 0x2FF, "memory types, machine-check thresholds"),
    Range(0x300, 0x3FF, "performance monitoring"),
    Range(0x400, 0x47F, "machine-check banks"),
    Range(0x480, 0x5FF, "VMX, SGX, processor trace"),
    Range(0x600, 0x6FF, "energy and power limits, last branches"),
    Range(0x700, 0x7FF, "uncore, hardware-controlled P-states"),
    Range(0x800, 0x9FF, "x2APIC, trusted execution, user interrupts"),
    Range(0xA00, 0xAFF, "uncore"),
    Range(0xB00, 0xBFF, "uncore"),
    Range(0xC00, 0xCFF, "uncore, resource monitoring"),
    Range(0xD00, 0xDFF, "resource allocation, uncore, last branches"),
    Range(0xE00, 0xE7F, "uncore"),
    Range(0xE80, 0xEFF, "uncore"),
    Range(0xF00, 0xFFF, "uncore"),
    Range(0x1000, 0x1FFF, "of single models"),
    Range(0x2000, 0x20FF, "uncore"),
    Range(0x2100, 0x21FF, "uncore"),
    Range(0x2200, 0x22FF, "uncore"),
    Range(0x2300, 0x2EFF, "uncore"),
    Range(0x2F00, 0x3FFFFFFF, "of single models"),
    Range(0x40000000, 0x4B564CFF, "Hyper-V"),
    Range(0x4B564D00, 0xBFFFFFFF, "KVM"),
    Range(0xC0000000, 0xC0001FFF, "system calls, AMD's architectural MSRs"),
    Range(0xC0002000, 0xC00020FF, "AMD's scalable machine-check banks 0 to 15"),
    Range(0xC0002100, 0xC00021FF, "AMD's scalable machine-check banks 16 to 31"),
    Range(0xC0002200, 0xC00022FF, "AMD's scalable machine-check banks 32 to 47"),
    Range(0xC0002300, 0xC000FFFF, "AMD's scalable machine-check banks 48 to 63"),
    Range(0xC0010000, 0xC00101FF, "AMD's system configuration, SVM, P-states"),
    Range(0xC0010200, 0xC00103FF, "AMD's performance monitoring and power"),
    Range(0xC0010400, 0xC0010FFF, "AMD's machine-check masks and others"),
    Range(0xC0011000, 0xFFFFFFFF, "AMD's model-specific configuration"),
)

MORE = {
    "run": "reference/run",
    "exec": "reference/exec",
    "ctl": "howto/ctl",
    "top": "howto/live",
    "wrap": "howto/libvirt",
    "trace": "reference/trace",
    "policy": "reference/policy",
    "report": "howto/report",
    "msr": "reference/msr",
    "decode": "reference/decode",
    "encode": "reference/decode",
    "demo": "tutorial/first-policy",
}
"""The page that says more about a command than its help."""

MODULES = (
    "kvmsr.machine",
    "kvmsr.policy",
    "kvmsr.policy.file",
    "kvmsr.policy.plan",
    "kvmsr.dispatch",
    "kvmsr.dispatch.models",
    "kvmsr.session",
    "kvmsr.msr",
    "kvmsr.kvm",
    "kvmsr.kvm.exits",
    "kvmsr.abi",
    "kvmsr.backend",
    "kvmsr.trace",
    "kvmsr.trace.file",
    "kvmsr.trace.analysis",
    "kvmsr.trace.learn",
    "kvmsr.symbols",
    "kvmsr.errors",
)
"""The modules that the library's face leads to."""


def home(module: str, name: str) -> str:
    """Return the documented module that *name* of *module* belongs to: some are in several."""
    found = getattr(importlib.import_module(module), name)
    defined = getattr(found, "__module__", None) or module
    holders = [
        holder
        for holder in MODULES
        if getattr(importlib.import_module(holder), name, None) is found
        and name in importlib.import_module(holder).__all__
    ]
    near = [holder for holder in holders if f"{defined}.".startswith(f"{holder}.")]
    return max(near, key=len) if near else holders[0]


def commands() -> list[str]:
    """Return the names of the commands."""
    return cli.list_commands(click.Context(cli))


def toctree(names: list[str]) -> str:
    return "\n".join(["```{toctree}", ":maxdepth: 1", "", *names, "```", ""])


def generated() -> dict[str, str]:
    """Return the generated pages: their text by their names."""
    pages = {
        "reference/commands/index.md": f"""# Commands

Each command as its `--help` describes it. `kvmsr COMMAND --help` shows the same on a terminal.

{toctree(commands())}""",
        "reference/msrs/index.md": f"""# MSRs

All {len({msr.index for msr in catalog()})} MSRs of [the catalog](../msr.md), by number.
`kvmsr msr` shows the same on a terminal. The search finds an MSR by number (`0x1a0`) and by any
of its names.

{toctree([page.page for page in RANGES])}
## By number

```{{kvmsr-msr-index}}
```
""",
        "reference/api/index.md": f"""# The library, name by name

[](../library.md) introduces these. Names that a module does not list here may change at any time.

{toctree(["kvmsr", *MODULES])}""",
    }
    for name in commands():
        more = f"See also [](../../{MORE[name]}.md).\n\n" if name in MORE else ""
        pages[f"reference/commands/{name}.md"] = (
            f"# kvmsr {name}\n\n{more}```{{kvmsr-command}} {name}\n```\n"
        )
    for page in RANGES:
        pages[f"reference/msrs/{page.page}.md"] = (
            f"# {page.title}\n\n```{{kvmsr-msrs}} {page.first:#x} {page.last:#x}\n```\n"
        )
    pages["reference/api/kvmsr.md"] = FACE
    for name in MODULES:
        pages[f"reference/api/{name}.md"] = module_page(name)
    return pages


def module_page(name: str) -> str:
    """Return the page of a module, with what belongs to it and to no other one."""
    module = importlib.import_module(name)
    own = ", ".join(each for each in module.__all__ if home(name, each) == name)
    return f"# {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n   :members: {own}\n```\n"


FACE = """# kvmsr

What `import kvmsr` has, and where it is described.

```{eval-rst}
.. kvmsr-face::
```
"""
