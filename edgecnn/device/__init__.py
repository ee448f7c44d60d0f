"""The device: where images come from, and the loop over them."""
