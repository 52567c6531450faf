"""Where a signal becomes an envelope, and the moment after the response."""
