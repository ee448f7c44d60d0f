"""The choosers: temperature, threshold, stranger limit and input range, based only on arrays of validation answers."""
