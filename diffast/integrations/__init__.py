"""Faces that other tools know: each module speaks one of them and runs plans behind it."""
