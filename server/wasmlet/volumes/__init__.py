"""The files that a container sees."""
