"""Measure what the program does: speed tables (`bench`), later quality tables."""
