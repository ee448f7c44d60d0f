"""People say what kept pictures show: the order of the questions, and where the answers are written before the next one is asked."""
