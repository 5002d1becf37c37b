"""`secure-codream demo`: real processes on one machine, beside their references."""
