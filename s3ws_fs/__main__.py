"""`python -m s3ws_fs` is `s3ws`. Called by the interpreter only."""

from __future__ import annotations

from s3ws_fs.cli import main

if __name__ == "__main__":
    main()
