"""The state of git repositories, as bundles (docs/git.md)."""
