"""The outbox: the table where envelopes wait. The only layer that uses SQL. Needs SQLAlchemy."""
