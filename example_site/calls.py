"""One call to one partner: plain slow HTTP."""

from __future__ import annotations

from time import perf_counter

import requests
from flask import current_app

from .models import Call, Lead, db


class PartnerError(Exception):
    """A partner did not take a call, for a reason that people can read."""


def call_partner(partner: str, lead: Lead) -> None:
    """Tell ``partner`` about ``lead``, and add the call that it took.

    The commit is left to async_hooks: the added call and the end of its delivery are one
    transaction.

    :raises PartnerError: if it did not take the call, which is then tried again.
    """
    news = {"id": lead.id, "name": lead.name, "email": lead.email, "message": lead.message}
    db.session.commit()  # because no transaction may stay open while the partner takes its time
    started = perf_counter()
    try:
        _post(partner, news)
    except requests.RequestException as error:
        raise PartnerError(_in_words(error)) from error
    db.session.add(Call(lead=lead, partner=partner, seconds=perf_counter() - started))


def _post(partner: str, news: dict[str, object]) -> None:
    url = f"{current_app.config['PARTNERS_URL']}/{partner}"
    answer = requests.post(url, json=news, timeout=(3, current_app.config["CALL_SECONDS"]))
    answer.raise_for_status()


def _in_words(error: requests.RequestException) -> str:
    match error:
        case requests.HTTPError():
            answer = error.response
            return f"The partner answered {answer.status_code} ({answer.reason.capitalize()})."
        case requests.Timeout():
            return "The partner did not answer in time."
    return "The partner could not be reached."
