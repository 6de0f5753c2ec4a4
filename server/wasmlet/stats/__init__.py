"""What the machine has and what is used of it."""
