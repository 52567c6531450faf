"""The shop as an ASGI app, by each of two adapters; neither passes on which server it is."""

from __future__ import annotations

from typing import Any

import a2wsgi
from asgiref.wsgi import WsgiToAsgi

from tests.support.shop import app

application: Any = app
by_asgiref: Any = WsgiToAsgi(application)  # type: ignore[no-untyped-call]
by_a2wsgi = a2wsgi.WSGIMiddleware(application)
