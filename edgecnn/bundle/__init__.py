"""Bundles: one `.edgecnn` file that holds the models, what they need to run, and the proof that they answer as they should."""
