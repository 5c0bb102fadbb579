"""The streaming plan that makes candidates, and their selection."""
