"""s3ws_fs.fuse"""
