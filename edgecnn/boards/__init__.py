"""Boards: the targets that models are deployed to."""
