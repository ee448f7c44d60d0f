"""Find what is wrong with this machine, as far as edgecnn is concerned."""
