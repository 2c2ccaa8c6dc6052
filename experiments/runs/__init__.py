"""A run of training and its workdir."""
