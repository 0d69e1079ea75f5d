"""Data with the same loss curve as a network's, on which plans are compared without the network."""
