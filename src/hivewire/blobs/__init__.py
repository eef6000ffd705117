"""Where large contents are kept beside the queues: a folder, an SQLite file, S3, or a place of the store's own."""

from __future__ import annotations

from hivewire.blobs.store import BlobStore as BlobStore
