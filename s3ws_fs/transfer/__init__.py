"""s3ws_fs.transfer"""
