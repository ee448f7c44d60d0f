"""Other people's programs: Frigate and MediaPipe."""
