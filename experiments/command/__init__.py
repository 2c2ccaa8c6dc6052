"""What every command shares: its flags and its report."""
