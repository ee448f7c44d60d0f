"""The page, the API and the metrics of a board: a process next to the camera loop, which never waits for it."""
