"""From plans to calls of ops: what the network predicts, guidance and clamps multiplied out."""
