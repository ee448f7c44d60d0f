"""Many boards from a workstation, over ssh: bring them what they need, and gather their status."""
