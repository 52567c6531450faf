"""``flask async-hooks …``: what it shows, what it changes, and the worker."""

from .inspect import cli as cli
