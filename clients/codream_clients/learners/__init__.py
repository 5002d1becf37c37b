"""What answers the tasks of each course on a client, and learns what is certified."""
