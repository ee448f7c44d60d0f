"""Many boards from a workstation, by ssh: what they need is brought to them, and what they say of themselves is gathered."""
