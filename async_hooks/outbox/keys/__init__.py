"""Limits by key: what is held, what is promoted, and what waits for newer data."""
