"""A federation in one process: with a course and learners, message by message, or over loopback sockets."""
