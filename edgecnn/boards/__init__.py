"""Boards: the targets that models are deployed to, and their emulation."""
