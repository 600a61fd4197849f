"""The worker process, which alone speaks to the store, and the daemon's side of the pipe to it."""
