"""Dramatiq with Redis: a message is sent to an actor, the threads of workers run it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from flask import Flask

from ..app import HandOver
from ..environment import REDIS_URL, name
from .work import work

# Optional, so the type checker need not have them.
dramatiq: Any = import_module("dramatiq")
dramatiq.set_broker(import_module("dramatiq.brokers.redis").RedisBroker(url=REDIS_URL))
actor = dramatiq.actor(work, queue_name=name())


def connect(app: Flask) -> HandOver:
    return lambda lead: actor.send(lead)
