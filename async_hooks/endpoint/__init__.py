"""Where an envelope arrives: the endpoint and its fresh request."""
