"""The choosers: temperature, threshold, strangers' limit and input range, from arrays of validation answers only."""
