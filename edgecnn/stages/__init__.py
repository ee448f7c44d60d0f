"""One module for each command that works: from its inputs to its files, by calling the rooms below."""
