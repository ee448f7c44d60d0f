"""The judges: do the exported models answer like the float model? They choose nothing, and use both wings, export and runtime."""
