"""Plans of guided methods that step on the state: gradients on it, and fresh noise."""
