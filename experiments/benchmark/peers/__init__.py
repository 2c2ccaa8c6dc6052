"""Other libraries on the same problem; each is imported only when it is timed."""
