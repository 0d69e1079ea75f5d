"""Fast, exact sampling for diffusion and flow models."""
