"""Models: their configurations and weights, read from folders, single files and the hub."""
