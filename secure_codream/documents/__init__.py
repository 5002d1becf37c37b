"""Documents that the code says itself: `python -m secure_codream.documents docs` writes them, a test holds them."""
