"""The contract of proto/ as Python code. Generated: change proto/, then hack/generate."""
