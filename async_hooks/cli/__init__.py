"""``flask async-hooks …``: what it shows, what it changes, and the worker."""

from . import check, doctor, groups, inspect, manage, work
from .options import cli

__all__ = ["check", "cli", "doctor", "groups", "inspect", "manage", "work"]
