"""`s3ws metrics`."""
