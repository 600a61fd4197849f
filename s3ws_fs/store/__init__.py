"""Object stores behind one small contract (base.py): s3, local, memory; always used scoped.

Importing this package imports no client library: boto3 is loaded by `factory.open_store` for type
s3 only.
"""
