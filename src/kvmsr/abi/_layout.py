# SPDX-License-Identifier: Apache-2.0
"""
Layout
------

Declare a C structure as a class whose annotations are its fields, in order.
"""

import ctypes
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, TypeVar

__all__ = (
    "I16",
    "I32",
    "I64",
    "U8",
    "U16",
    "U32",
    "U64",
    "Layout",
    "Overlay",
    "Word",
    "address_of",
    "buffer",
    "flexible",
    "layout",
    "size_of",
)

U8 = Annotated[int, ctypes.c_uint8]
U16 = Annotated[int, ctypes.c_uint16]
U32 = Annotated[int, ctypes.c_uint32]
U64 = Annotated[int, ctypes.c_uint64]
I16 = Annotated[int, ctypes.c_int16]
I32 = Annotated[int, ctypes.c_int32]
I64 = Annotated[int, ctypes.c_int64]

_T = TypeVar("_T", bound=type[ctypes.Structure] | type[ctypes.Union])


def _items(value: Any) -> Any:
    if isinstance(value, ctypes.Array):
        return [_items(item) for item in value]
    return value


class _Readable:
    """Equality, repr and copy; common to structures and unions."""

    __slots__ = ()

    _fields_: ClassVar[Any]

    def __repr__(self) -> str:
        parts = []
        for name, *_ in self._fields_:
            value = _items(getattr(self, name))
            parts.append(f"{name}={value:#x}" if isinstance(value, int) else f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return bytes(self) == bytes(other)  # type: ignore[call-overload, no-any-return]

    __hash__ = None  # type: ignore[assignment]

    def copy(self: Any) -> Any:
        """Return an independent copy."""
        return type(self).from_buffer_copy(self)


class Layout(_Readable, ctypes.Structure):
    """A C structure; ``C_NAME`` is its name in the kernel's headers."""

    __slots__ = ()

    C_NAME: ClassVar[str]


class Overlay(_Readable, ctypes.Union):
    """A C union."""

    __slots__ = ()

    C_NAME: ClassVar[str]


def layout(c_name: str) -> Callable[[_T], _T]:
    """
    Return a decorator that turns a class's annotations into the ctypes fields of *c_name*.

    This is not done by ``__init_subclass__``, because ctypes completes a class only after that hook
    has run.

    :param c_name: the structure's name in C.
    """

    def complete(cls: _T) -> _T:
        fields = []
        for name, hint in inspect.get_annotations(cls, eval_str=True).items():
            metadata = getattr(hint, "__metadata__", None)  # Annotated[int, ctypes.c_uint8]
            fields.append((name, metadata[0] if metadata else hint))
        # Create the class again, because only a class created with __slots__ refuses a misspelt
        # field, as in Regs(rpi=5).
        body = {name: getattr(cls, name) for name in ("__doc__", "__module__", "__qualname__")}
        body |= {"__slots__": (), "_fields_": fields, "C_NAME": c_name}
        metaclass: Any = type(cls)
        made: _T = metaclass(cls.__name__, cls.__bases__, body)
        return made

    return complete


@functools.lru_cache(maxsize=64)
def _flexible_type(
    header: type[Layout], array: str, item: Any, count: int
) -> type[ctypes.Structure]:
    return type(
        f"{header.__name__}_{count}",
        (header,),
        {"_fields_": [(array, item * count)], "__slots__": ()},
    )


class Word(ctypes.c_uint64):
    """A 64-bit number in memory, for ioctls that take an address."""


def buffer(size: int, content: bytes = b"") -> Any:
    """Return *size* bytes of memory with an address: *content*, followed by zeros."""
    return ctypes.create_string_buffer(content[:size], size)


def address_of(thing: Any) -> int:
    """Return the address of a structure or buffer, which must outlive the address's use."""
    return ctypes.addressof(thing)


def size_of(structure: type[ctypes.Structure]) -> int:
    """Return the size of a structure, in bytes."""
    return ctypes.sizeof(structure)


def flexible(header: type[Layout], array: str, item: Any, count: int) -> Any:
    """
    Return a zeroed structure with an array of *count* items at its end.

    The kernel's headers declare such a structure as ``struct x { u32 n; struct item items[]; }``.

    :param header: the structure before the array.
    :param array: the name of the array's field.
    :param item: the type of the array's items.
    """
    return _flexible_type(header, array, item, count)()
