"""Boards: what is known of the targets that models are deployed to."""
