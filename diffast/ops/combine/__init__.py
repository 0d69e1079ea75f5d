"""Linear combinations of tensors plus fresh normals."""
