"""`python -m s3ws_fs.container`: the entrypoint."""

from __future__ import annotations

from s3ws_fs.container import main

if __name__ == "__main__":
    main()
