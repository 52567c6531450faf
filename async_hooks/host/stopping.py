"""Whether the server of this process was told to end, and lets what runs finish."""

from __future__ import annotations

import signal

#: How these servers say so, in the object whose method handles SIGTERM; we install no handlers.
_SAID: dict[str, tuple[str, bool]] = {
    "gunicorn": ("alive", False),
    "uvicorn": ("should_exit", True),
}


def is_server_stopping() -> bool:
    """Tell whether a gunicorn or uvicorn that serves here has got SIGTERM; false elsewhere."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    for kind in type(server).__mro__:
        name, stopped = _SAID.get(kind.__module__.partition(".")[0], ("", True))
        if name:
            return getattr(server, name, None) is stopped
    return False
