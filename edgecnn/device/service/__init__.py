"""The service on a board, which classifies continuously under systemd."""
