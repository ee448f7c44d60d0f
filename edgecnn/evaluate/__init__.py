"""Models over images: their answers, and the statistics of answers. Chooses nothing and judges nothing."""
