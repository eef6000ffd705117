"""The setting `blobs` becomes a store."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from hivewire.blobs.store import BlobStore
from hivewire.errors import SettingsError, Unsupported

_FORMS = (
    "auto, none, folder:///PATH, sqlite:///PATH (//// for absolute) or s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME]"
)


def open_blobs(setting: str) -> BlobStore:
    """The store that the setting names; nothing is reached yet. Raises `SettingsError`, and `Unsupported` where a
    package for it is missing."""
    if setting.startswith("s3://"):
        return _s3(setting)
    kind, _, path = setting.partition(":///")
    if not path or kind not in ("folder", "sqlite"):
        raise SettingsError(f"blobs is {setting!r}; it is {_FORMS}")
    from hivewire.blobs.local import FolderBlobs, SQLiteBlobs

    return FolderBlobs(Path(path)) if kind == "folder" else SQLiteBlobs(Path(path))


def _s3(setting: str) -> BlobStore:
    parts = urlsplit(setting)
    options = parse_qs(parts.query, keep_blank_values=True)
    unknown = sorted(options.keys() - {"endpoint", "region"})
    if parts.username is not None or parts.password is not None:
        raise SettingsError(
            f"blobs names credentials; leave them out of s3://{parts.hostname}: they come from AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, a profile, or the machine's role"
        )
    if not parts.netloc or unknown or any(len(values) != 1 or not values[0] for values in options.values()):
        raise SettingsError(f"blobs is {setting!r}; it is {_FORMS}")
    try:
        from hivewire.blobs.s3 import S3Blobs
    except ImportError:
        raise Unsupported("contents on S3 need boto3: pip install 'hivewire[s3]'") from None
    return S3Blobs(
        parts.netloc, parts.path.strip("/"), options.get("endpoint", [None])[0], options.get("region", [None])[0]
    )
