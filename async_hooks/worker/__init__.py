"""``flask async-hooks worker``: a process that relays without a web server."""
