"""Bundles: one `.edgecnn` file with the models, everything they need to run, and the proof that they answer correctly."""
