"""What carries envelopes from where they wait to where they run."""
