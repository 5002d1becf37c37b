"""Images: where they come from, what is read of them, how they are dealt out and varied."""
