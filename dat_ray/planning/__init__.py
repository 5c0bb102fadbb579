"""What a recipe will take before anything runs: hours, memory, disk, model calls and tokens, by arithmetic and dated records."""
