"""Nothing at all: what a request costs that hands nothing over."""

from __future__ import annotations

from flask import Flask

from ..app import HandOver, Lead


def connect(app: Flask) -> HandOver:
    return _nothing


def _nothing(lead: Lead) -> None:
    """Take a lead over and forget it."""
