"""The outbox: the table where envelopes wait. The only room that speaks SQL. Needs SQLAlchemy."""
