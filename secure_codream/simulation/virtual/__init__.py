"""Many virtual clients: the real machines of both sides, in the processes of one machine or of a Ray cluster."""
