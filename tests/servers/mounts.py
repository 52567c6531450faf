"""The app of shop.py, mounted in ways that a request's headers have a say in."""

from __future__ import annotations

from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

from tests.support.shop import create_app

#: A dispatcher inside of ProxyFix: the mount comes after the prefix of the proxy.
proxied_mount = ProxyFix(
    DispatcherMiddleware(Flask("front"), {"/shop": create_app()}), x_host=1, x_prefix=1
)

#: The other way round.
mounted_proxy = DispatcherMiddleware(
    Flask("front"), {"/shop": ProxyFix(create_app(), x_host=1, x_prefix=1)}
)
