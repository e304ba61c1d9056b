"""What travels through the real node: sets of forged studies, their manifest, and what became of every file."""
