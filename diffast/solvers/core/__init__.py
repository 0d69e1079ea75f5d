"""What solver families share: one-step and multistep rows, integrals, noise splits."""
