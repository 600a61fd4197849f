"""How the command and the daemon find and talk to each other on one host."""
