"""How the calls about a lead are going: what the outbox knows of them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from async_hooks import Delivery, DeliveryState

from .labels import PARTNERS
from .models import Lead
from .tasks import hooks

UNFINISHED = (DeliveryState.EXECUTING, DeliveryState.AVAILABLE)
GIVEN_UP = (DeliveryState.DISCARDED, DeliveryState.CANCELLED)


@dataclass(frozen=True)
class Progress:
    """``deliveries`` are by partner; there are none once they are purged."""

    deliveries: dict[str, Delivery]

    @property
    def state(self) -> DeliveryState | None:
        """Of all deliveries' states the one to know about first."""
        states = {delivery.state for delivery in self.deliveries.values()}
        order = (*UNFINISHED, *GIVEN_UP, DeliveryState.COMPLETED)
        return next((state for state in order if state in states), None)

    @property
    def is_finished(self) -> bool:
        return self.state not in UNFINISHED

    @property
    def given_up(self) -> dict[str, Delivery]:
        return {
            partner: delivery
            for partner, delivery in self.deliveries.items()
            if delivery.state in GIVEN_UP
        }


def progress_of(lead: Lead) -> Progress:
    """Return how the calls about ``lead`` are going.

    A moment after the lead was saved, what was launched becomes a delivery for each partner.
    """
    found = hooks.outbox.find(ref=f"lead-{lead.id}")
    own = {delivery.receiver: delivery for delivery in found if delivery.receiver}
    if found and not own:
        launched = found[0]
        if launched.state is DeliveryState.EXECUTING:  # It is being split: no partner is called.
            launched = replace(launched, state=DeliveryState.AVAILABLE, attempts=0)
        return Progress(dict.fromkeys(PARTNERS, launched))
    known = [partner for partner in PARTNERS if partner in own]
    return Progress({partner: own[partner] for partner in [*known, *sorted(own.keys() - PARTNERS)]})
