"""The measured systems, a module each: ``connect(app)`` returns what hands a lead over."""
