"""Plans made for a network: candidates measured on a pilot batch, then learned weights."""
