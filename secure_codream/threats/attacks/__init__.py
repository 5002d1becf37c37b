"""The attacks by family; each module has `ATTACKS`, and `SWITCHES` for its own defences."""
