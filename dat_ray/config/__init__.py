"""What a run is. Imports neither torch nor ray."""
