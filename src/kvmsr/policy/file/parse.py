# SPDX-License-Identifier: Apache-2.0
"""
Policy files
------------

Reads TOML files as :class:`~kvmsr.policy.Policy`. Reading is strict: everything that is not
understood is an error, and errors name file, line and key.
"""

from pathlib import Path
from typing import NamedTuple

from kvmsr.errors import PolicyError
from kvmsr.policy.file.finder import Finder
from kvmsr.policy.file.importer import Importer
from kvmsr.policy.file.reader import PRESET, Reader, Shelf
from kvmsr.policy.policy import Defaults, Policy, host_write_error
from kvmsr.policy.topology import Topology

__all__ = ("PRESET", "Reading", "load_policy", "parse_policy", "read_policy")


class Reading(NamedTuple):
    """
    The result of reading a policy.

    :ivar policy: the policy, without the parts that have errors.
    :ivar errors: all errors, by file and line.
    """

    policy: Policy
    errors: tuple[PolicyError, ...]

    def usable(self) -> Policy:
        """
        Return the policy.

        :raises PolicyError: if there are errors; the first of them.
        """
        if self.errors:
            raise self.errors[0]
        return self.policy


def load_policy(file: str | Path, *, finder: Finder | None = None) -> Policy:
    """
    Read the policy in *file*, a regular file of at most 4 MiB, or a preset such as
    ``preset:quiet``.

    :param finder: resolves functions and models; by default, by importing their modules.
    :raises PolicyError: for the first error in the file or in a file that it extends; names file,
        line and key.
    """
    return read_policy(file, finder=finder).usable()


def read_policy(file: str | Path, *, finder: Finder | None = None) -> Reading:
    """Read a policy like :func:`load_policy`, but report all errors."""
    shelf = Shelf(finder or Importer())
    try:
        return _reading(shelf.read(str(file), Path()), shelf)
    except PolicyError as error:
        named = error if error.file else PolicyError(str(error), file=str(file))
        return Reading(Policy(), (named,))


def parse_policy(
    text: str,
    *,
    source: str = "policy",
    folder: Path = Path(),
    finder: Finder | None = None,
) -> Policy:
    """
    Read a policy from *text*.

    :param source: what messages call it.
    :param folder: what files and modules that it names are relative to.
    :param finder: as for :func:`load_policy`.
    :raises PolicyError: as :func:`load_policy`.
    """
    shelf = Shelf(finder or Importer())
    return _reading(Reader(text, source, folder, shelf), shelf).usable()


def _reading(reader: Reader, shelf: Shelf) -> Reading:
    for one in shelf.readers:
        one.look_up()
    header = reader.document.header
    rules, refused = [], []
    for rule in reader.rules():
        error = None if header.allow_host_writes else host_write_error(rule)
        if error is None:
            rules.append(rule)
        else:
            refused.append(error)
    policy = Policy(
        rules,
        Defaults(**reader.defaults),
        topology=Topology(**reader.topology),
        observe=reader.observe,
        allow_host_writes=header.allow_host_writes,
        name=header.name,
        description=header.description,
        source=reader.document.source,
        files=map(str, dict.fromkeys((*shelf.files, *shelf.finder.files))),
    )
    errors: list[PolicyError] = []
    for one in shelf.readers:
        own = [error for error in refused if error.file == one.document.source]
        errors += sorted([*one.document.errors, *own], key=lambda error: error.line)
    return Reading(policy, tuple(errors))
