"""``flask async-hooks …``: what it shows, what it changes, and the worker."""

from . import check, doctor, inspect, manage, work
from .options import cli

__all__ = ["check", "cli", "doctor", "inspect", "manage", "work"]
