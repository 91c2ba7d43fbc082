"""Pages and pictures of a run for people."""
