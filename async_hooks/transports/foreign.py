"""What it means when something answers that is not our endpoint, and what to do about it."""

from __future__ import annotations

from ..errors import TransportError
from .client import Answer

_APP_ITSELF = "Set 'ASYNC_HOOKS_URL' to the app itself."

#: By status: the cause, and the remedy.
_KNOWN = {
    403: ("proxy", f"A proxy or firewall is in front of the app. {_APP_ITSELF}"),
    404: ("another-app", "Another app listens there, or this one is mounted under a path."),
    405: ("another-app", "Another app listens there, or this one is mounted under a path."),
    413: ("too-large", "Raise the request size limit of the server or proxy that answered."),
    429: ("proxy", f"A proxy limits its rate. {_APP_ITSELF}"),
    502: ("proxy", f"A proxy does not reach the app. {_APP_ITSELF}"),
    503: ("proxy", f"The server or a proxy is overloaded. {_APP_ITSELF}"),
    504: ("proxy", f"A proxy does not reach the app. {_APP_ITSELF}"),
}


def explain_foreign_answer(url: str, answer: Answer) -> TransportError:
    """Return the error that ``answer``, which has no verdict of ours, stands for."""
    cause, remedy = _explained(url, answer)
    what = f"{url!r} answered {answer.status} without our endpoint's verdict."
    return TransportError(f"{what} {remedy}", cause=cause)


def _explained(url: str, answer: Answer) -> tuple[str, str]:
    if 300 <= answer.status < 400:
        return _redirected(url, answer.headers.get("location", ""))
    if answer.status == 401 and "www-authenticate" in answer.headers:
        return "basic-auth", "It needs a login. Set 'ASYNC_HOOKS_AUTH' to (user, password)."
    if answer.status == 401 and answer.headers.get("content-length") == "0":
        return "wrong-secret", (
            "It rejected our signature. Does that app use another 'SECRET_KEY' or "
            "'ASYNC_HOOKS_AUDIENCE'?"
        )
    return _KNOWN.get(answer.status) or (
        "another-app",
        "Another app, a login page or a proxy answers there. Set 'ASYNC_HOOKS_URL' to this app.",
    )


def _redirected(url: str, location: str) -> tuple[str, str]:
    if url.startswith("http:") and location.startswith("https:"):
        return "redirect-to-https", (
            f"It redirects to {location!r}. Set 'ASYNC_HOOKS_URL' to the https address, or to the "
            "address of the app itself behind its proxy."
        )
    return "redirect", (
        f"It redirects to {location!r}. Is a login page or a proxy in front of the app? "
        f"{_APP_ITSELF}"
    )
