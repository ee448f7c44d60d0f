"""Releases of a model on a device: a new one is tried, kept if it proves itself, and else the one before comes back."""
