"""Which mounts and workspaces there are: for the commands, the status page, and who else looks."""
