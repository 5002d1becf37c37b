"""Every strategy of a small world against the real machines, and the document's tables."""
