"""What users write, with types; `make lint` checks it. Nothing here runs."""

from __future__ import annotations

from typing import Any

from flask import Flask

from async_hooks import AsyncHooks, AsyncTask, async_signal

hooks = AsyncHooks()


@hooks.register
class LeadTask(AsyncTask):
    action = "lead_submitted"

    def prepare_data(self, sender: Flask, *, lead: str) -> dict[str, Any]:
        return {"lead": lead}

    def run_action(self, data: dict[str, Any]) -> None:
        self.send(**data)


@hooks.receiver("lead_submitted", name="crm")
def crm(sender: Flask, *, lead: str) -> int:
    return 1


@async_signal("lead_submitted").connect
def news(sender: Flask, *, lead: str) -> None: ...


envelope_id: str = LeadTask.dispatch({"lead": "x"})
envelope_ids: list[str] = LeadTask.dispatch_many([{"lead": "x"}], queue="leads", delay=60)


@hooks.job
def resize(width: int, *, unit: str = "px") -> None: ...


envelope_id = resize.enqueue(100)
envelope_id = resize.enqueue(width=100, unit="em")
envelope_id = resize.dispatch({"width": 100}, queue="images", delay=60)
resize.enqueue("wide")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
resize.dispatch({"width": 100}, queu="images")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
