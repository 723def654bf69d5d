# SPDX-License-Identifier: Apache-2.0
"""
Policies
--------

Ordered rules and defaults: what the owner of a virtual machine wants to happen to each MSR.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from kvmsr.errors import PolicyError
from kvmsr.policy.access import Handler
from kvmsr.policy.actions import Counter, Host, Model, Plain, Python, plain
from kvmsr.policy.rule import Rule
from kvmsr.policy.selector import MAX_INDEX, MsrSpec, Ranges, merge, parse_msrs
from kvmsr.policy.topology import Topology
from kvmsr.text import shown

__all__ = (
    "EVERY_MSR", "ON_ERROR", "ON_UNKNOWN", "Defaults", "Policy", "host_write_error", "on_read",
    "on_write", "parse_observe",
)  # fmt: skip

EVERY_MSR: Final = "all"
"""What to observe, if it is every MSR that KVM handles itself."""

ON_UNKNOWN: Final = (Plain.FAULT, Plain.IGNORE, Plain.SHADOW, Plain.STOP)
ON_ERROR: Final = (Plain.FAULT, Plain.IGNORE, Plain.STOP)


@dataclass(frozen=True, slots=True, init=False)
class Defaults:
    """
    What happens to accesses that no rule decides.

    :ivar unknown: for MSRs that KVM does not know: fault, ignore, shadow or stop.
    :ivar invalid: for values and modes that KVM rejects: the same choices.
    :ivar on_error: for accesses whose handler fails: fault, ignore or stop.
    """

    unknown: Plain
    invalid: Plain
    on_error: Plain

    def __init__(
        self, unknown: str = "fault", invalid: str = "fault", on_error: str = "fault"
    ) -> None:
        put = object.__setattr__
        put(self, "unknown", plain(unknown, ON_UNKNOWN))
        put(self, "invalid", plain(invalid, ON_UNKNOWN))
        put(self, "on_error", plain(on_error, ON_ERROR))


@dataclass(frozen=True, slots=True, init=False)
class Policy:
    """
    Ordered rules and defaults. The first rule wins that selects the MSR, has an action for the
    direction, and whose condition holds.

    :ivar topology: which vCPUs share registers.
    :ivar observe: the MSRs whose accesses are to be seen even if no rule takes them from KVM.
    :ivar allow_host_writes: whether ``host`` is allowed as an action for writes.
    :ivar source: the file that it was read from, or "".
    :ivar files: all files that it was read from: also those that it extends, and Python modules.
    """

    rules: tuple[Rule, ...]
    defaults: Defaults
    topology: Topology
    observe: Ranges
    allow_host_writes: bool
    name: str
    description: str
    source: str
    files: tuple[str, ...] = field(compare=False, repr=False)

    def __init__(
        self,
        rules: Iterable[Rule] = (),
        defaults: Defaults | None = None,
        *,
        topology: Topology | None = None,
        observe: MsrSpec = (),
        allow_host_writes: bool = False,
        name: str = "",
        description: str = "",
        source: str = "",
        files: Iterable[str] = (),
    ) -> None:
        put = object.__setattr__
        put(self, "rules", tuple(_placed(rule, n) for n, rule in enumerate(rules)))
        put(self, "defaults", defaults or Defaults())
        put(self, "topology", topology or Topology())
        put(self, "observe", parse_observe(observe))
        put(self, "allow_host_writes", allow_host_writes)
        put(self, "name", name)
        put(self, "description", description)
        put(self, "source", source)
        put(self, "files", tuple(files))
        for rule in () if allow_host_writes else self.rules:
            error = host_write_error(rule)
            if error is not None:
                raise error

    def observing(self, msrs: Ranges) -> "Policy":
        """Return this policy with *msrs* added to what it observes."""
        return replace(self, observe=merge([*self.observe, *msrs])) if msrs else self

    @property
    def asks_python(self) -> bool:
        """Return whether there are accesses that C cannot answer alone."""
        actions = {action for rule in self.rules for action in (rule.read, rule.write)}
        defaults = {self.defaults.unknown, self.defaults.invalid, self.defaults.on_error}
        return Plain.STOP in actions | defaults or any(
            isinstance(action, Host | Model | Python) for action in actions
        )

    @property
    def has_registers(self) -> bool:
        """Return whether the policy keeps registers, which a VMM's snapshots do not contain."""
        actions = [action for rule in self.rules for action in (rule.read, rule.write)]
        return Plain.SHADOW in (self.defaults.unknown, self.defaults.invalid) or any(
            action is Plain.SHADOW or isinstance(action, Counter | Model) for action in actions
        )


def parse_observe(spec: MsrSpec) -> Ranges:
    """
    Return the MSRs that *spec* selects; ``all`` is every MSR, and nothing is none.

    :raises PolicyError: if *spec* is malformed, or there is no such MSR.
    """
    items = list(spec) if isinstance(spec, list | tuple) else [spec]
    if EVERY_MSR in items:
        return ((0, MAX_INDEX),)
    return parse_msrs(items) if items else ()  # type: ignore[arg-type]  # refused there


def host_write_error(rule: Rule) -> PolicyError | None:
    """Return the error for a rule that writes to the host, where that is not allowed; else None."""
    if not isinstance(rule.write, Host):
        return None
    file, line, key, _ = rule.place.at("write")
    message = (
        "guests may write to the host's registers only with allow_host_writes = true in [policy],"
        " in the file that is run itself"
    )
    return PolicyError(message, file=file, line=line, key=key or f"{rule.where}.write")


def _placed(rule: Rule, number: int) -> Rule:
    """Return *rule* with a name for messages, if it does not come from a file."""
    if not isinstance(rule, Rule):
        raise PolicyError(f"rule[{number}] is not a Rule: {shown(rule)}")
    if rule.where:
        return rule
    return replace(rule, where=f"rule[{number}]")


def on_read(msr: MsrSpec) -> Callable[[Handler], Rule]:
    """
    Turn a function into a rule that has it answer reads of *msr*::

        @on_read("MSR_CORE_THREAD_COUNT")
        def four_threads(access):
            return 0x0004_0004

        policy = Policy([four_threads])
    """
    return lambda function: Rule(msr, read=Python(function))


def on_write(msr: MsrSpec) -> Callable[[Handler], Rule]:
    """Turn a function into a rule that has it handle writes to *msr*; see :func:`on_read`."""
    return lambda function: Rule(msr, write=Python(function))
