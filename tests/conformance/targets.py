# SPDX-License-Identifier: Apache-2.0
"""
Targets
-------

Where the items run: the host's KVM, or the soft backend under a profile. (The nested machine of
``tests/nested`` is a machine in which the host's KVM is another one, and ours alone.)
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kvmsr import backend as backends
from kvmsr.backend import Backend
from kvmsr.backend.soft.profile import PROFILES
from kvmsr.errors import KvmsrError
from tests.conformance import kernel as kernels
from tests.conformance.kernel import Kernel
from tests.conformance.registry import Item, NotApplicable, Result
from tests.conformance.world import World

__all__ = ("Target", "host", "profiles", "run_items", "soft")

EMULATING: Final = "force_emulation_prefix"
_PARAMETERS: Final = Path("/sys/module/kvm/parameters")


@dataclass(frozen=True)
class Target:
    """
    A KVM to run items on.

    :ivar open_backend: gives the backend; again, with module parameters changed, if it takes any.
    :ivar place: where it is: ``kvm``, ``own``, ``soft``.
    """

    kernel: Kernel
    open_backend: Callable[..., AbstractContextManager[Backend]]
    place: str = "soft"

    @property
    def name(self) -> str:
        """Where it is, and the kernel's name."""
        return f"{self.place}:{self.kernel.name}"

    @contextmanager
    def world(self, **parameters: Any) -> Iterator[World]:
        """Give a world, on a kernel with module *parameters* changed if any are named."""
        with self.open_backend(**parameters) as backend:
            world = World(backend, self.kernel, self.world)
            try:
                yield world
            finally:
                world.close()

    def run(self, item: Item) -> Result:
        """Run one item."""
        started = time.perf_counter()
        outcome, detail = self._try(item)
        return Result(item.number, outcome, detail, time.perf_counter() - started)

    def _try(self, item: Item) -> tuple[str, str]:
        for part in item.needs:
            if part in self.kernel.lacks:
                return "n/a", self.kernel.lacks[part]
        try:
            with self.world() as world, world.watched():
                item.check(world)
        except NotApplicable as reason:
            return "n/a", str(reason)
        except (AssertionError, KvmsrError, OSError) as error:
            return "fail", str(error) or repr(error)
        return "pass", ""


def host(*, own: bool = False, emulating: bool = False) -> Target:
    """
    Return this machine's KVM.

    :param own: it is ours alone, so its module parameters may be changed.
    :param emulating: force RDMSR and WRMSR through its emulator; it must be our own.
    :raises KvmsrError: if it cannot be opened.
    """
    backend = backends.open("kvm")
    backend.close(backend.open())

    @contextmanager
    def open_backend(**parameters: Any) -> Iterator[Backend]:
        if parameters and not own:
            names = " and ".join(parameters)
            raise NotApplicable(f"{names} may not be changed here: it is the whole host's")
        if emulating:
            parameters |= {EMULATING: True}
        former = {name: (_PARAMETERS / name).read_text() for name in parameters}
        for name, value in parameters.items():
            (_PARAMETERS / name).write_text(str(int(value)))
        try:
            yield backend
        finally:
            for name, text in former.items():
                (_PARAMETERS / name).write_text(text)

    kernel = kernels.host()
    return Target(
        kernel.emulating() if emulating else kernel, open_backend, "own" if own else "kvm"
    )


def soft(profile: str) -> Target:
    """
    Return the soft backend under a profile, which may be followed by ``,force_emulation_prefix``.

    :raises KvmsrError: if it cannot be used here.
    """
    backends.open("soft", profile=profile)
    name, *given = profile.split(",")
    kernel = kernels.named(name)
    if EMULATING in given:
        kernel = kernel.emulating()

    @contextmanager
    def open_backend(**parameters: Any) -> Iterator[Backend]:
        switches = [f"{name}={int(value)}" for name, value in parameters.items()]
        yield backends.open("soft", profile=",".join((profile, *switches)))

    return Target(kernel, open_backend)


def profiles() -> tuple[str, ...]:
    """Return the names of soft's profiles."""
    return tuple(PROFILES)


def run_items(target: Target, items: Iterable[Item]) -> list[Result]:
    """Run items on a target, each in a world of its own."""
    return [target.run(item) for item in items]
