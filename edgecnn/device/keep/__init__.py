"""What a board keeps of its stream: unsure and strange frames, and a random sample, from which accuracy in the field is estimated."""
