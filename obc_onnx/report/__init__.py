"""What changed, for people and for programs."""
