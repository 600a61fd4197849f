"""Workspaces as volumes of Docker and podman: `docker run -v CONVERSATION:/workspace …`."""
