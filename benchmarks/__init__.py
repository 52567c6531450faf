"""Measures this library beside what people would use instead. Not part of the distribution."""
