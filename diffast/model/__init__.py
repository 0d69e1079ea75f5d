"""What a network's output means: prediction types, guidance, learned variances."""
