"""What is computed from stored rows: rows in, numbers out. No torch, no Ray, no files."""
