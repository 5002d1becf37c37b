"""The courses that come with the project; see `codream_protocols.course` for what a course is, `registry` for names."""
