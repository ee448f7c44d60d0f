"""The frames that a board keeps: unsure ones, strangers, and a random sample that gives an estimate of accuracy in the field."""
