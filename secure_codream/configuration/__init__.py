"""What people write, read and checked; and what is made of it: courses, learners, data, limits."""
