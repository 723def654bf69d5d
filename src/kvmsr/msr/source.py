# SPDX-License-Identifier: Apache-2.0
"""
The catalog's sources
---------------------

Read the files that people maintain, and make the catalog from them.

``data/names/*.toml`` list MSRs with index, name and aliases. ``count`` and ``stride`` describe a
whole bank; ``{n}`` in names and descriptions is replaced by the number. ``data/details/*.toml`` add
details to some MSRs, by name. In both, a table ``file`` at the top has defaults for the whole file.

``cpus`` restricts a row to some CPUs. An index may have several rows in ``names`` for different
CPUs, and a name several rows in ``details``: each is a meaning of the index. A row without ``cpus``
holds for the CPUs of its vendors that no other row claims.

Sources are given by project and file; ``data/editions.toml`` knows which snapshot of each project
is meant, and the edition is added here.

Reading all of them is slow, so the package contains the result, ``data/catalog.json``.
``tools/build_catalog.py`` makes it, and a test compares it with these files.
"""

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from kvmsr.errors import CatalogError, UsageError
from kvmsr.msr.cpu import cpu_sets
from kvmsr.msr.entry import CATEGORIES, Msr, MsrField
from kvmsr.msr.forms import FORMS
from kvmsr.msr.meanings import check_apart, order
from kvmsr.msr.summaries import SUMMARIES

__all__ = ("read_sources",)

_VENDORS: Final = ("intel", "amd", "kvm", "hyperv")
_SCOPES: Final = ("", "thread", "core", "package", "vm")
_ACCESS: Final = ("", "rw", "ro", "wo")
_KINDS: Final = ("rw", "ro", "wo", "fault", "w1c", "w0c", "w1s", "once", "lock", "rc")


class _Field(msgspec.Struct, forbid_unknown_fields=True):
    bits: str | int
    name: str
    about: str = ""
    kind: str = "rw"
    values: dict[str, str] = {}
    scale: float = 1.0
    unit: str = ""
    form: str = ""


class _Shared(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    vendors: tuple[str, ...] = ()
    cpus: tuple[str, ...] = ()
    scope: str = ""
    access: str = ""
    category: str = ""
    sources: tuple[str, ...] = ()


class _Name(_Shared, frozen=True, forbid_unknown_fields=True, kw_only=True):
    index: int
    name: str
    aliases: tuple[str, ...] = ()
    count: int = 1
    stride: int = 1
    first: int = msgspec.field(default=0, name="from")
    about: str = ""


class _Detail(_Shared, frozen=True, forbid_unknown_fields=True, kw_only=True):
    msr: str
    about: str
    reset: int | None = None
    fields: tuple[_Field, ...] = ()
    rest: str = ""
    summary: str = ""
    kvm: str = ""


class _Given(NamedTuple):
    detail: _Detail
    file: _Shared
    where: str


class _Names(msgspec.Struct, forbid_unknown_fields=True):
    msr: tuple[_Name, ...]
    file: _Shared = _Shared()


class _Details(msgspec.Struct, forbid_unknown_fields=True):
    msr: tuple[_Detail, ...]
    file: _Shared = _Shared()


def read_sources(folder: Path) -> tuple[Msr, ...]:
    """
    Return the catalog that the files under *folder* describe, in order of the indices.

    :raises CatalogError: if a file is not valid; the message names file and entry.
    """
    details: dict[str, list[_Given]] = {}
    for path in sorted((folder / "details").glob("*.toml")):
        found = _parse(path, _Details)
        for detail in found.msr:
            details.setdefault(detail.msr, []).append(_Given(detail, found.file, path.name))
    made: dict[int, list[Msr]] = {}
    named: set[str] = set()
    for path in sorted((folder / "names").glob("*.toml")):
        names = _parse(path, _Names)
        for name in names.msr:
            named.add(name.name)
            for given in _meanings(name, details.get(name.name, [])):
                for msr in _expand(name, names.file, given, path.name):
                    meanings = made.setdefault(msr.index, [])
                    check_apart(msr, meanings, path.name)
                    meanings.append(msr)
    if not named >= set(details):
        nameless = ", ".join(sorted(set(details) - named))
        raise CatalogError(f"details for MSRs that no file names: {nameless}")
    dated = _editions(folder / "editions.toml")
    return tuple(
        msgspec.structs.replace(msr, sources=tuple(map(dated, msr.sources)))
        for _, meanings in sorted(made.items())
        for msr in sorted(meanings, key=order)
    )


def _editions(path: Path) -> Callable[[str], str]:
    """Return what adds the edition to a source whose project is in the file *path*."""
    known = tomllib.loads(path.read_text("utf-8"))["editions"] if path.exists() else {}

    def dated(source: str) -> str:
        edition = next((known[name] for name in known if source.startswith(f"{name} ")), "")
        has_one = re.search(r"\b20\d\d\b|^\w+ \d", source)
        return f"{source} ({edition})" if edition and not has_one else source

    return dated


def _meanings(name: _Name, details: list[_Given]) -> list[_Given | None]:
    """Return the details of each meaning of *name*; None where only the name is known."""
    bare = not name.cpus and all(given.detail.cpus for given in details)
    return [*([None] if bare or not details else []), *details]


def _parse(path: Path, kind: Any) -> Any:
    try:
        return msgspec.convert(tomllib.loads(path.read_text("utf-8")), kind)
    except (msgspec.ValidationError, tomllib.TOMLDecodeError) as error:
        raise CatalogError(f"{path.name}: {error}") from None


def _expand(name: _Name, file: _Shared, given: _Given | None, where: str) -> Iterator[Msr]:
    shared: dict[str, Any] = _given(file) | _given(name)
    more: dict[str, Any] = {"about": name.about}
    if given is not None:
        detail, where = given.detail, given.where
        shared |= _given(given.file) | _given(detail)
        if not detail.cpus:  # those of the name, as far as the details are of their vendor
            what = f"{where}: {name.name}"
            shared["cpus"] = tuple(
                spec for spec in name.cpus if _vendors(what, spec) & set(shared["vendors"])
            )
        more = {
            "about": detail.about, "reset": detail.reset, "rest": detail.rest, "kvm": detail.kvm,
            "summary": detail.summary, "fields": _fields(detail, where),
        }  # fmt: skip
    _check(f"{where}: {name.name}", shared)
    for number in range(name.count):
        index = name.index + number * name.stride
        names = [
            text.replace("{n}", str(name.first + number)) for text in (name.name, *name.aliases)
        ]
        about = more["about"].replace("{n}", str(name.first + number))
        yield Msr(index, names[0], tuple(names[1:]), **shared, **(more | {"about": about}))


def _given(part: _Shared) -> dict[str, Any]:
    return {key: getattr(part, key) for key in _Shared.__struct_fields__ if getattr(part, key)}


def _fields(detail: _Detail, where: str) -> tuple[MsrField, ...]:
    made: list[MsrField] = []
    for field in detail.fields:
        high, _, low = str(field.bits).partition("-" if "-" in str(field.bits) else ":")
        ends = sorted((int(high), int(low or high)))
        if ends[1] > 63 or field.kind not in _KINDS:
            raise CatalogError(f"{where}: {detail.msr}.{field.name}: bits or kind are not valid")
        if field.form not in FORMS:
            raise CatalogError(f"{where}: {detail.msr}.{field.name}: form is {field.form!r}")
        values = {int(number, 0): meaning for number, meaning in field.values.items()}
        if any(meaning.isdigit() for meaning in values.values()):
            raise CatalogError(f"{where}: {detail.msr}.{field.name}: a value's name is a number")
        # Defaults are left out of the catalog, which msgspec tells by identity.
        scale = {} if field.scale == 1 else {"scale": field.scale}
        new = MsrField(
            field.name, ends[0], ends[1], field.about, field.kind, values,
            unit=field.unit, form=field.form, **scale,
        )  # fmt: skip
        for other in made:
            if other.mask & new.mask or other.name == new.name:
                raise CatalogError(f"{where}: {detail.msr}: {other.name} and {new.name} overlap")
        made.append(new)
    if detail.rest not in ("", "reserved"):
        raise CatalogError(f"{where}: {detail.msr}: rest is {detail.rest!r}")
    if detail.summary not in SUMMARIES:
        raise CatalogError(f"{where}: {detail.msr}: summary is {detail.summary!r}")
    return tuple(sorted(made, key=lambda field: field.low))


def _check(what: str, shared: dict[str, Any]) -> None:
    for key, known in (("scope", _SCOPES), ("access", _ACCESS), ("category", ("", *CATEGORIES))):
        if shared.get(key, "") not in known:
            raise CatalogError(f"{what}: {key} is {shared[key]!r}; valid are {', '.join(known)}")
    if not shared.get("vendors") or not set(shared["vendors"]) <= set(_VENDORS):
        raise CatalogError(f"{what}: vendors must be some of {', '.join(_VENDORS)}")
    for spec in shared.get("cpus", ()):
        if not _vendors(what, spec) <= set(shared["vendors"]):
            raise CatalogError(f"{what}: cpus: {spec} is none of {', '.join(shared['vendors'])}")
    if not shared.get("sources"):
        raise CatalogError(f"{what}: it has no sources")


def _vendors(what: str, spec: str) -> set[str]:
    """Return the vendors of the CPUs that *spec* stands for."""
    try:
        return {one.vendor for one in cpu_sets(spec)}
    except UsageError as error:
        raise CatalogError(f"{what}: cpus: {error}") from None
