"""The methods that a comparison knows, one a file; `registry` has their names."""
