"""Reviewing: people label the kept pictures. Each answer is written to disk before the next question."""
