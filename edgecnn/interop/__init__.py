"""Interfaces to other programs: Frigate and MediaPipe."""
