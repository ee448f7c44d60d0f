"""From frames and files to results: the loop over a stream and its parts."""
