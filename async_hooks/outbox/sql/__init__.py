"""How statements reach the database, and what tables there are."""
