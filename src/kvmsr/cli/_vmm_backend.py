# SPDX-License-Identifier: Apache-2.0
"""
A VMM's KVM
-----------

The options of ``kvmsr exec`` and ``wrap`` that say what the VMM's /dev/kvm is.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from kvmsr import backend as backends
from kvmsr.attach import SoftKvm
from kvmsr.backend import Backend
from kvmsr.backend.soft import DEFAULT_PROFILE
from kvmsr.backend.soft.profile import find_profile
from kvmsr.errors import BackendError

__all__ = ("backend_of", "backend_words", "vmm_backend")

_DEFAULT: Final = "kvm"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def vmm_backend(command: _Command) -> _Command:
    """Add the options."""
    for option in (
        click.option(
            "--soft-profile",
            metavar="NAME",
            default=DEFAULT_PROFILE,
            show_default=True,
            help="The kernel that the soft backend models.",
        ),
        click.option(
            "--backend",
            type=click.Choice(backends.NAMES),
            default=_DEFAULT,
            show_default=True,
            help="What the VMM's /dev/kvm is: the host's KVM, or soft, a model of KVM on a software"
            " CPU.",
        ),
    ):
        command = option(command)
    return command


def backend_of(name: str, profile: str) -> tuple[Backend, SoftKvm | None]:
    """
    Return the VMM's KVM, and what it takes to have it in the VMM's process.

    :raises BackendError: if it cannot be used here.
    :raises UsageError: if there is no such profile.
    """
    try:
        backend, why_soft = _choose(name, profile)
    except BackendError as error:
        if name != "kvm":
            raise
        raise BackendError(f"{error}; or run the VMM on a model of KVM: --backend soft") from None
    return backend, SoftKvm(profile, why_soft) if backend.name == "soft" else None


def _choose(name: str, profile: str) -> tuple[Backend, str]:
    if name != "auto":
        return backends.open(name, profile=profile, real_time=True), ""
    from kvmsr.machine.choice import choose_backend  # takes long to import, with all of the machine

    return choose_backend(name, profile=profile, real_time=True)


def backend_words(name: str, profile: str) -> list[str]:
    """
    Return the options as words, those only that are not as by default.

    :raises UsageError: if there is no such profile.
    """
    find_profile(profile)
    words = [] if name == _DEFAULT else ["--backend", name]
    return words + ([] if profile == DEFAULT_PROFILE else ["--soft-profile", profile])
