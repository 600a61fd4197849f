"""The status page of `s3ws web`: the mounts of this host in a browser."""
