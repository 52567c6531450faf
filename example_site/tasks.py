"""What happens after the thank-you page.

The view saves a lead and sends the signal ``lead_submitted``; both are one transaction. The visitor
has the answer already when LeadTask runs, in a fresh request. Its three receivers get a fresh
request each: a slow partner delays no other, a failing one is tried again alone, and what the end
of every process interrupts runs again with the next start.
"""

from __future__ import annotations

from flask import Flask

from async_hooks import AsyncHooks, AsyncTask

from .calls import call_partner
from .models import Lead, db

hooks = AsyncHooks(db=db)


@hooks.register
class LeadTask(AsyncTask):
    """Tells our partners about a new lead."""

    action = "lead_submitted"

    def prepare_data(self, sender: Flask, *, lead: Lead) -> dict[str, int]:
        return {"lead_id": lead.id}

    def ref(self, data: dict[str, int]) -> str:
        return f"lead-{data['lead_id']}"

    def run_action(self, data: dict[str, int]) -> None:
        lead = db.session.get(Lead, data["lead_id"])
        if lead is not None:
            self.send(lead=lead)


def soon(attempt: int) -> float:
    """Return 3, 6, 12 … seconds: a demo's idea of patience."""
    return 1.5 * 2.0**attempt


@hooks.receiver("lead_submitted", name="crm", max_attempts=4, backoff=soon)
def tell_crm(sender: Flask, *, lead: Lead) -> None:
    call_partner("crm", lead)


@hooks.receiver("lead_submitted", name="newsletter", max_attempts=3, backoff=soon)
def tell_newsletter(sender: Flask, *, lead: Lead) -> None:
    call_partner("newsletter", lead)


@hooks.receiver("lead_submitted", name="sales", max_attempts=3, backoff=soon)
def tell_sales(sender: Flask, *, lead: Lead) -> None:
    call_partner("sales", lead)
