# SPDX-License-Identifier: Apache-2.0
"""
The head of a trace
-------------------

What was recorded, and how: the metadata of the file's schema, under the key ``kvmsr``, in JSON.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, Self

import msgspec

from kvmsr.errors import TraceError
from kvmsr.msr import Cpu
from kvmsr.trace.options import Grade

__all__ = ("KEY", "SCHEMA", "Head", "Unseen")

_SAID: Final = 12

KEY: Final = b"kvmsr"
SCHEMA: Final = 1
"""The version of the format. It changes when an older kvmsr could not read it any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unseen:
    """
    Accesses that are not in a trace, as KVM completed them.

    :ivar op: the direction, ``read`` or ``write``.
    :ivar msrs: the MSRs: indices, and ranges such as ``0x200-0x20f``.
    :ivar why: what the guest would have noticed if they had been taken from KVM.
    """

    op: str
    msrs: list[str]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """
    What a trace says about its run.

    :ivar kvmsr: the version of kvmsr that wrote it.
    :ivar command: ``run`` or ``exec``.
    :ivar image: the image or the VMM's command, for people.
    :ivar backend: the backend's name.
    :ivar host: about the host's kernel and KVM, by name.
    :ivar policy: the policy's file or name.
    :ivar policy_text: the text of the policy's file and of all that it includes, by file name.
    :ivar not_observed: what was to be observed and was left with KVM.
    :ivar grade: how much was recorded.
    :ivar began_ns: when the run began, in nanoseconds since the epoch.
    :ivar cpuid: the guest's CPUID where kvmsr sets it; each entry is function, index, EAX, EBX, ECX
        and EDX.
    :ivar cpu: the CPU of which the run's names of MSRs are, such as ``intel:06_8F``; "" if *cpuid*
        says it, or if it is not known.
    """

    kvmsr: str = ""
    command: str = "run"
    image: str = ""
    backend: str = ""
    host: dict[str, str] = field(default_factory=dict)
    policy: str = ""
    policy_text: dict[str, str] = field(default_factory=dict)
    not_observed: list[Unseen] = field(default_factory=list)
    grade: Grade = Grade.ALL
    began_ns: int = 0
    cpuid: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)
    cpu: str = ""

    @property
    def guest_cpu(self) -> Cpu | None:
        """Return the guest's CPU, or None if the trace does not say."""
        leaves = {entry[0]: entry[2:] for entry in self.cpuid if entry[0] in (0, 1)}
        if len(leaves) == 2:
            _, ebx, ecx, edx = leaves[0]
            letters = b"".join(part.to_bytes(4, "little") for part in (ebx, edx, ecx))
            return Cpu.from_cpuid(letters.decode("latin-1"), leaves[1][0])
        return Cpu.from_text(self.cpu)

    def left_out(self) -> list[str]:
        """Return lines about accesses that are not in the trace, as KVM was left to answer them."""
        lines = []
        for op in ("read", "write"):
            msrs = [msr for one in self.not_observed if one.op == op for msr in one.msrs]
            more = f", … ({len(msrs):,} in all)" if len(msrs) > _SAID else ""
            if msrs:
                said = f"{', '.join(msrs[:_SAID])}{more}"
                lines.append(f"Not observed, and so not in the trace: {op}s of {said}")
        return lines

    def encoded(self) -> bytes:
        """Return the head as JSON."""
        return msgspec.json.encode({"schema": SCHEMA, **asdict(self)})

    @classmethod
    def decoded(cls, data: bytes) -> Self:
        """
        Return the head in *data*.

        :raises TraceError: if it is not valid.
        """
        try:
            given = msgspec.json.decode(data, type=dict[str, Any])
            if given.get("schema") != SCHEMA:
                raise TraceError(
                    f"its format has version {given.get('schema')}, and this kvmsr reads version"
                    f" {SCHEMA}; it was written by kvmsr {given.get('kvmsr', '(unknown)')}"
                )
            known = {one.name for one in fields(cls)}
            return msgspec.convert({k: v for k, v in given.items() if k in known}, cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise TraceError(f"its head is damaged: {error}") from None
