"""The tables of the chaos app's own, where its launches join its transactions."""

from __future__ import annotations

from sqlalchemy import Column, Integer, MetaData, String, Table

metadata = MetaData()

#: What a view writes beside a launch.
leads = Table(
    "chaos_leads",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("number", Integer, nullable=False),
)

#: What a receiver writes, and leaves the commit to the library.
effects = Table(
    "chaos_effects",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("delivery", String(64), nullable=False),
    Column("number", Integer, nullable=False),
    Column("receiver", String(20), nullable=False),
)
