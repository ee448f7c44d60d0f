"""Releases that a board fetches by itself, from a server that need not be trusted."""
