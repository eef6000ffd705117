"""Large contents in a bucket of S3, or of a server that speaks as it does (MinIO, Ceph, R2)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any, Final, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from botocore.exceptions import ConnectionError as NotConnected

from hivewire.blobs.store import BlobStore
from hivewire.errors import BackendError, ConnectionLost

T = TypeVar("T")

_THREADS: Final = 8
_MOST_AT_ONCE: Final = 1_000
"""What one call of DeleteObjects takes."""
_LASTING: Final = frozenset(
    {
        "AccessDenied",
        "InvalidAccessKeyId",
        "SignatureDoesNotMatch",
        "NoSuchBucket",
        "InvalidBucketName",
        "EntityTooLarge",
    }
)
"""Refusals that do not end by themselves."""


class S3Blobs(BlobStore):
    """An object for each. Credentials and their renewal are boto3's: environment, profile, role of the machine.

    A bucket that is not there, or may not be read, loses no message: reading it raises, as if the server was away.
    """

    def __init__(self, bucket: str, prefix: str, endpoint: str | None, region: str | None) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._endpoint = endpoint
        self._region = region
        self._threads = ThreadPoolExecutor(_THREADS, "hivewire-s3")
        self._made: Any = None
        self._making = Lock()

    def _client(self) -> Any:
        with self._making:
            if self._made is None:
                config = Config(
                    connect_timeout=5,
                    read_timeout=30,
                    retries={"mode": "standard", "total_max_attempts": 2},
                    max_pool_connections=_THREADS,
                    # Many servers that speak S3 know no other checksums; the engine checks a hash of its own.
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    s3={"addressing_style": "path" if self._endpoint else "auto"},
                )
                self._made = boto3.session.Session().client(
                    "s3", endpoint_url=self._endpoint, region_name=self._region, config=config
                )
            return self._made

    async def put(self, name: str, body: bytes) -> None:
        await self._run(
            "store", name, lambda s3: s3.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=body)
        )

    async def get(self, name: str) -> bytes | None:
        def read(s3: Any) -> bytes | None:
            try:
                found: bytes = s3.get_object(Bucket=self._bucket, Key=self._prefix + name)["Body"].read()
            except s3.exceptions.NoSuchKey:
                return None
            return found

        return await self._run("read", name, read)

    async def delete(self, names: Sequence[str]) -> None:
        def remove(s3: Any) -> None:
            for start in range(0, len(names), _MOST_AT_ONCE):
                some = [{"Key": self._prefix + name} for name in names[start : start + _MOST_AT_ONCE]]
                answer = s3.delete_objects(Bucket=self._bucket, Delete={"Objects": some, "Quiet": True})
                if left := answer.get("Errors"):
                    raise ConnectionLost(f"delete {left[0]['Key']} in s3://{self._bucket}: {left[0]['Message']}")

        await self._run("delete", names[0] if names else "", remove)

    async def names(self) -> list[str]:
        def look(s3: Any) -> list[str]:
            pages = s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            return [each["Key"].removeprefix(self._prefix) for page in pages for each in page.get("Contents", ())]

        return await self._run("list", "", look)

    async def _run(self, doing: str, name: str, work: Callable[[Any], T]) -> T:
        def run() -> T:
            return work(self._client())

        what = f"{doing} the content {name} in s3://{self._bucket}" if name else f"{doing} s3://{self._bucket}"
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, run)
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if doing == "store" and code in _LASTING:
                raise BackendError(f"{what}: {error}") from error
            raise ConnectionLost(f"{what}: {error}") from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise BackendError(
                f"{what}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role"
            ) from error
        except (NotConnected, HTTPClientError, OSError) as error:
            raise ConnectionLost(f"{what}: {error}") from error
        except BotoCoreError as error:  # no region, a profile or a name that cannot be: it does not end by itself
            raise BackendError(f"{what}: {error}") from error

    async def close(self) -> None:
        made, self._made = self._made, None
        self._threads.shutdown(wait=False)
        if made is not None:
            made.close()
