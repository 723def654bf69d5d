"""Each backend that is here."""

from tests.cli.conftest import backend

__all__ = ("backend",)
