"""Networks by name, and the layout of their parameters."""
