"""The pages. None of them ever calls a partner: that is what ``tasks.py`` is for."""

from __future__ import annotations

from time import perf_counter

from blinker import signal
from flask import (
    Blueprint,
    Flask,
    current_app,
    flash,
    g,
    redirect,
    render_template,
    request,
    url_for,
)
from sqlalchemy import select
from werkzeug import Response
from werkzeug.exceptions import HTTPException

from .forms import LeadForm
from .labels import PARTNERS
from .models import Lead, db
from .progress import progress_of
from .tasks import hooks

lead_submitted = signal("lead_submitted")

site = Blueprint("site", __name__)
LEAD = "/leads/<int(max=999999999):lead_id>"


def init_app(app: Flask) -> None:
    app.before_request(start_watch)
    app.register_blueprint(site)
    app.register_error_handler(HTTPException, show_error)


def start_watch() -> None:
    g.started = perf_counter()


@site.get("/")
def form() -> str:
    return render_template("form.html", form=LeadForm())


@site.post("/")
def submit() -> tuple[str, int] | Response:
    """Save the lead and send the signal, both with one commit, and answer at once."""
    form = LeadForm()
    if not form.validate():
        return render_template("form.html", form=form), 422
    lead = Lead(name=form.name.data, email=form.email.data, message=form.message.data)
    db.session.add(lead)
    db.session.flush()  # because what travels is its id
    lead_submitted.send(this_app(), lead=lead)
    db.session.commit()
    answer = redirect(url_for(".thanks", lead_id=lead.id), 303)
    lead.answer_seconds = perf_counter() - g.started
    db.session.commit()
    return answer


@site.get(f"{LEAD}/thanks")
def thanks(lead_id: int) -> str:
    return show("thanks.html", lead_id)


@site.get(f"{LEAD}/times")
def times(lead_id: int) -> str:
    """The part of the thank-you page that changes."""
    return show("_times.html", lead_id)


@site.get("/leads")
def leads() -> str:
    number = min(request.args.get("page", 1, type=int), 10**6)
    page = db.paginate(select(Lead).order_by(Lead.id.desc()), page=number, per_page=20)
    return render_template("leads.html", page=page, progress_of=progress_of)


@site.get(LEAD)
def lead(lead_id: int) -> str:
    return show("lead.html", lead_id)


@site.get(f"{LEAD}/calls")
def calls(lead_id: int) -> str:
    """The part of the lead's page that changes."""
    return show("_calls.html", lead_id)


@site.post(f"{LEAD}/calls/<any({', '.join(PARTNERS)}):partner>/again")
def again(lead_id: int, partner: str) -> Response:
    delivery = progress_of(find(lead_id)).given_up.get(partner)
    if delivery is not None and hooks.outbox.retry(delivery.id):
        flash(f"{PARTNERS[partner]}: we are calling again.")
    else:
        flash(f"{PARTNERS[partner]}: there is no need to call again.")
    return redirect(url_for(".lead", lead_id=lead_id), 303)


def this_app() -> Flask:
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    return app


def show(template: str, lead_id: int) -> str:
    lead = find(lead_id)
    return render_template(template, lead=lead, progress=progress_of(lead))


def find(lead_id: int) -> Lead:
    lead: Lead = db.get_or_404(Lead, lead_id)
    return lead


def show_error(error: HTTPException) -> tuple[str, int]:
    return render_template("error.html", error=error), error.code or 500
