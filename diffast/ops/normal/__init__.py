"""The package's normal numbers."""
