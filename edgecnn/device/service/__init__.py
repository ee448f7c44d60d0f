"""The service of a board: it classifies from boot to boot, under systemd."""
