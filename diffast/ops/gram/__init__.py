"""Inner products of rows that are never stored."""
