"""Runs models over images and computes statistics of their answers. It chooses nothing and judges nothing."""
