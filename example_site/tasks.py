"""What happens after the thank-you page.

The view saves a lead and sends the signal ``lead_submitted``; the visitor has the answer already
when LeadTask runs, in a fresh request. Its three receivers get a fresh request each: a slow
partner delays no other, and a failing one fails alone.
"""

from __future__ import annotations

from flask import Flask

from async_hooks import AsyncHooks, AsyncTask

from .calls import call_partner
from .models import Call, Lead, db

hooks = AsyncHooks()


@hooks.register
class LeadTask(AsyncTask):
    """Tells our partners about a new lead."""

    action = "lead_submitted"

    def prepare_data(self, sender: Flask, *, lead: Lead) -> dict[str, int]:
        return {"lead_id": lead.id}

    def run_action(self, data: dict[str, int]) -> None:
        lead = db.session.get(Lead, data["lead_id"])
        if lead is not None:
            self.send(lead=lead)


@hooks.receiver("lead_submitted", name="crm")
def tell_crm(sender: Flask, *, lead: Lead) -> None:
    call_partner("crm", lead)


@hooks.receiver("lead_submitted", name="newsletter")
def tell_newsletter(sender: Flask, *, lead: Lead) -> None:
    call_partner("newsletter", lead)


@hooks.receiver("lead_submitted", name="sales")
def tell_sales(sender: Flask, *, lead: Lead) -> None:
    call_partner("sales", lead)


@hooks.register
class CallAgainTask(AsyncTask):
    """Makes one call again. What is done in ``run_action`` itself needs no receiver."""

    action = "call_again_requested"

    def prepare_data(self, sender: Flask, *, call: Call) -> dict[str, int]:
        return {"call_id": call.id}

    def run_action(self, data: dict[str, int]) -> None:
        call = db.session.get(Call, data["call_id"])
        if call is not None:
            call_partner(call.partner, call.lead)
