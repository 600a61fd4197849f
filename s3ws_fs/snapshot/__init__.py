"""Backups and git state, from one point in time of the cache; see tree.py and __main__.py."""
