"""What families share: one-step and multistep rows, integrals, phi functions, noise splits."""
