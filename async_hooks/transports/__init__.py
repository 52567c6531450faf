"""How an envelope travels. Each transport has one method, ``send(envelope)``."""
