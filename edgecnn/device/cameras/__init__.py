"""Cameras and other streams of frames: one file per source."""
