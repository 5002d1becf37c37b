"""Training, dreaming and learning from dreams, on one client."""
