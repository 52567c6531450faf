"""Where an envelope arrives: the door, and the fresh request behind it."""
