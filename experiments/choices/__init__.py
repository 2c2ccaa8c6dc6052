"""What flags can choose."""
