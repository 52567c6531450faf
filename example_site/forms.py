"""The one form of the site."""

from __future__ import annotations

from flask_wtf import FlaskForm
from wtforms import EmailField, StringField, TextAreaField
from wtforms.validators import DataRequired, Email, Length


def stripped(text: str | None) -> str | None:
    return text and text.strip()


class LeadForm(FlaskForm):  # type: ignore[misc]
    """What a visitor tells us."""

    name = StringField(
        "Your name",
        filters=[stripped],
        validators=[
            DataRequired("Please tell us your name."),
            Length(max=100, message="Please keep your name under 100 characters."),
        ],
        render_kw={"autocomplete": "name"},
    )
    email = EmailField(
        "E-mail address",
        filters=[stripped],
        validators=[
            DataRequired("Please give us an address to answer to."),
            Email("This does not look like an e-mail address. Is it complete?"),
        ],
        render_kw={"autocomplete": "email"},
    )
    message = TextAreaField(
        "Your message",
        filters=[stripped],
        validators=[
            DataRequired("Please write us a line or two."),
            Length(max=2000, message="Please keep your message under 2000 characters."),
        ],
        render_kw={"rows": 5},
    )
