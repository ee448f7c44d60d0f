"""One module per working command: it turns inputs into files by calling the rooms below."""
