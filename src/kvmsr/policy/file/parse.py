# SPDX-License-Identifier: Apache-2.0
"""
Policy files
------------

TOML text to :class:`~kvmsr.policy.Policy`. Strict: what is not understood is an error, and the
error names file, line and key.
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
    What came of reading a policy.

    :ivar policy: the policy, without the parts that *errors* are about.
    :ivar errors: everything that is wrong, in the order of files and lines.
    """

    policy: Policy
    errors: tuple[PolicyError, ...]

    def usable(self) -> Policy:
        """
        Return the policy.

        :raises PolicyError: the first of the errors, if there is one.
        """
        if self.errors:
            raise self.errors[0]
        return self.policy


def load_policy(file: str | Path, *, finder: Finder | None = None) -> Policy:
    """
    Read the policy in *file*; ``preset:quiet`` and the like are those that come with kvmsr.

    :param finder: finds functions and models in Python modules; by default it imports them.
    :raises PolicyError: with file, line and key, for the first thing that is wrong in it or in a
        policy that it extends.
    """
    return read_policy(file, finder=finder).usable()


def read_policy(file: str | Path, *, finder: Finder | None = None) -> Reading:
    """Read a policy as :func:`load_policy` does, to its end, whatever is wrong with it."""
    shelf = Shelf(finder or Importer())
    try:
        return _reading(shelf.read(str(file), Path()), shelf)
    except PolicyError as error:
        named = error if error.file else PolicyError(str(error), file=str(file))
        return Reading(Policy(), (named,))


def parse_policy(text: str, *, source: str = "policy") -> Policy:
    """
    Read a policy from *text*; what it extends, and its modules, are found from the working folder.

    :param source: what messages call it.
    :raises PolicyError: as :func:`load_policy`.
    """
    shelf = Shelf(Importer())
    return _reading(Reader(text, source, Path(), shelf), shelf).usable()


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
        Defaults(**reader.said),
        topology=Topology(**reader.topology),
        allow_host_writes=header.allow_host_writes,
        name=header.name,
        description=header.description,
        source=reader.document.source,
    )
    errors: list[PolicyError] = []
    for one in shelf.readers:
        own = [error for error in refused if error.file == one.document.source]
        errors += sorted([*one.document.errors, *own], key=lambda error: error.line)
    return Reading(policy, tuple(errors))
