# SPDX-License-Identifier: Apache-2.0
"""
Registry
--------

What an item is, what can come of it, and how an item says that something is not as it should be.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.conformance.world import World

__all__ = (
    "ITEMS",
    "Item",
    "NotApplicable",
    "Result",
    "Unmet",
    "equal",
    "errno_of",
    "holds",
    "item",
    "load",
)


class Unmet(AssertionError):
    """The kernel does not do what the item states."""


class NotApplicable(Exception):
    """The item cannot be tried on this kernel; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Item:
    """
    One statement of the checklist.

    :ivar number: ``C-020``.
    :ivar needs: parts of the interface that a kernel may lack as a whole, see ``Kernel.lacks``.
    """

    number: str
    check: Callable[["World"], None]
    needs: tuple[str, ...]

    @property
    def statement(self) -> str:
        """Return the item in words."""
        return inspect.cleandoc(self.check.__doc__ or "")


@dataclass(frozen=True, slots=True)
class Result:
    """What came of an item: *outcome* is ``pass``, ``fail`` or ``n/a``, *detail* says why."""

    number: str
    outcome: str
    detail: str = ""
    seconds: float = 0.0


ITEMS: dict[str, Item] = {}


def item(number: str, *needs: str) -> Callable[[Callable[["World"], None]], Any]:
    """Register a function as item *number*."""

    def register(check: Callable[["World"], None]) -> Callable[["World"], None]:
        if number in ITEMS:
            raise ValueError(f"two items are called {number}")
        ITEMS[number] = Item(number, check, needs)
        return check

    return register


def load() -> dict[str, Item]:
    """Return all items by number, in order."""
    package = importlib.import_module("tests.conformance.items")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(ITEMS.items()))


def equal(got: object, wanted: object, what: str = "") -> None:
    """Insist that *got* equals *wanted*."""
    if got != wanted:
        raise Unmet(f"{what + ': ' if what else ''}{_show(got)}, expected {_show(wanted)}")


def holds(truth: object, what: str) -> None:
    """Insist on *truth*; *what* says what does not hold otherwise."""
    if not truth:
        raise Unmet(what)


def errno_of(call: Callable[..., object], *args: Any, **keywords: Any) -> int:
    """Call, and return the errno that it fails with, or 0."""
    try:
        call(*args, **keywords)
    except Exception as error:
        number = getattr(error, "errno", None)
        if number is None:
            raise
        return int(number)
    return 0


def _show(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:#x}"
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex(" ")
    return repr(value)
