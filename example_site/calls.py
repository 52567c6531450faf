"""One call to one partner: plain slow HTTP, and a record of how it went."""

from __future__ import annotations

import requests
from flask import current_app

from .models import Lead, State


def call_partner(partner: str, lead: Lead) -> None:
    """Tell ``partner`` about ``lead``, and record what became of it.

    A call that was delivered, or is under way elsewhere, is not made a second time.

    :raises requests.RequestException: if the call fails, once that is recorded.
    """
    call = lead.call(partner)
    # All is read before the call begins, so that no transaction stays open while it lasts.
    news = {"id": lead.id, "name": lead.name, "email": lead.email, "message": lead.message}
    attempt = call.begin()
    if attempt is None:
        return
    try:
        _post(partner, news)
    except Exception as error:
        call.finish(attempt, State.FAILED, error=_in_words(error))
        raise
    call.finish(attempt, State.DELIVERED)


def _post(partner: str, news: dict[str, object]) -> None:
    url = f"{current_app.config['PARTNERS_URL']}/{partner}"
    answer = requests.post(url, json=news, timeout=(3, current_app.config["CALL_SECONDS"]))
    answer.raise_for_status()


def _in_words(error: Exception) -> str:
    match error:
        case requests.HTTPError():
            answer = error.response
            return f"The partner answered {answer.status_code} ({answer.reason.capitalize()})."
        case requests.Timeout():
            return "The partner did not answer in time."
        case requests.ConnectionError():
            return "The partner could not be reached."
    return f"Something went wrong on our side ({type(error).__name__})."
