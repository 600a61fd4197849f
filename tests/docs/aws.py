"""A stand-in for the AWS command: the forms that documents use, over boto3.

    aws s3 cp s3://BUCKET/KEY FILE|-     aws s3 cp FILE s3://BUCKET/KEY
    aws s3 cp --recursive s3://BUCKET/PREFIX s3://BUCKET/PREFIX
    aws s3 ls s3://BUCKET/PREFIX         aws s3 rm --recursive s3://BUCKET/PREFIX

Anything else is exit code 2, so that a document that needs more is noticed.
Called by tests/docs/sandbox.py.
"""

from __future__ import annotations

import sys
from typing import Any

import boto3
from botocore.config import Config


def main(words: list[str]) -> int:
    client: Any = boto3.session.Session().client(
        "s3", config=Config(s3={"addressing_style": "path"})
    )
    match words:
        case ["s3", "cp", source, target] if source.startswith("s3://"):
            bucket, key = _place(source)
            body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
            if target == "-":
                sys.stdout.buffer.write(body)
            else:
                with open(target, "wb") as file:
                    file.write(body)
        case ["s3", "cp", source, target]:
            bucket, key = _place(target)
            with open(source, "rb") as file:
                client.put_object(Bucket=bucket, Key=key, Body=file.read())
        case ["s3", "cp", "--recursive", source, target]:
            (bucket, prefix), (into, beginning) = _place(source), _place(target)
            for key in _keys(client, bucket, prefix):
                name = beginning + key.removeprefix(prefix)
                client.copy_object(Bucket=into, Key=name, CopySource={"Bucket": bucket, "Key": key})
        case ["s3", "ls", place]:
            bucket, prefix = _place(place)
            listing = client.list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter="/")
            for each in listing.get("CommonPrefixes", ()):
                print(f"{'PRE':>30} {each['Prefix'].removeprefix(prefix)}")
            for each in listing.get("Contents", ()):
                when = each["LastModified"].strftime("%Y-%m-%d %H:%M:%S")
                print(f"{when} {each['Size']:>10} {each['Key'].removeprefix(prefix)}")
        case ["s3", "rm", "--recursive", place]:
            bucket, prefix = _place(place)
            for key in _keys(client, bucket, prefix):
                client.delete_object(Bucket=bucket, Key=key)
                print(f"delete: s3://{bucket}/{key}")
        case _:
            print(f"aws: the stand-in does not know: {words}", file=sys.stderr)
            return 2
    return 0


def _keys(client: Any, bucket: str, prefix: str) -> list[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [each["Key"] for page in pages for each in page.get("Contents", ())]


def _place(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
