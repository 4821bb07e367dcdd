"""The tables of files and batches. Never knows what a row means."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import Final

from kimi_serve.gateway.sqlite import Sqlite
from kimi_serve.protocol.errors import ApiError

# From one version to the next; a step that was released is never changed.
_STEPS: Final = (
    """
    CREATE TABLE files (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, hash TEXT NOT NULL,
        bytes INTEGER NOT NULL, created INTEGER NOT NULL, expires INTEGER, filename TEXT NOT NULL, purpose TEXT NOT NULL
    );
    CREATE INDEX files_of_tenant ON files (tenant, seq);
    CREATE INDEX files_of_hash ON files (hash);
    CREATE INDEX files_that_expire ON files (expires) WHERE expires IS NOT NULL;
    CREATE TABLE batches (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, key TEXT,
        endpoint TEXT NOT NULL, input_file TEXT NOT NULL, input_hash TEXT NOT NULL, completion_window TEXT NOT NULL,
        metadata TEXT, output_expires INTEGER, output_file TEXT NOT NULL, error_file TEXT NOT NULL,
        status TEXT NOT NULL, created INTEGER NOT NULL, expires INTEGER NOT NULL, ended INTEGER,
        times TEXT NOT NULL DEFAULT '{}', problems TEXT,
        total INTEGER NOT NULL DEFAULT 0, completed INTEGER NOT NULL DEFAULT 0, failed INTEGER NOT NULL DEFAULT 0,
        has_output INTEGER NOT NULL DEFAULT 0, has_errors INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX batches_of_tenant ON batches (tenant, seq);
    CREATE INDEX batches_under_way ON batches (seq) WHERE ended IS NULL;
    CREATE INDEX batches_of_hash ON batches (input_hash) WHERE ended IS NULL;
    CREATE TABLE lines (
        batch TEXT NOT NULL, number INTEGER NOT NULL, custom_id TEXT NOT NULL, start INTEGER NOT NULL,
        length INTEGER NOT NULL, result BLOB, is_good INTEGER, PRIMARY KEY (batch, number)
    );
    """,
    """
    ALTER TABLE batches ADD COLUMN input_tokens INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN cached_tokens INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN output_tokens INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE batches ADD COLUMN reasoning_tokens INTEGER NOT NULL DEFAULT 0;
    """,
)

logger = logging.getLogger(__name__)


class FilesAwayError(ApiError):
    """The folder or its database does not do what it should; later it may."""

    def __init__(self) -> None:
        message = "the files cannot be reached at the moment; retry later"
        super().__init__("files_unavailable", message, retry_after=5.0)


def database(path: Path) -> Sqlite:
    """`async with database(path) as opened:`."""
    return Sqlite(path, _prepare, _failure)


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA synchronous = FULL")  # what a client was told is kept, whatever happens
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    for number, step in enumerate(_STEPS[version:], version + 1):
        connection.executescript(f"BEGIN; {step} PRAGMA user_version = {number}; COMMIT;")


def _failure(error: Exception) -> FilesAwayError:
    # SQLite's messages name tables and states, never values.
    logger.warning("the database of files fails", extra={"reason": f"{type(error).__name__}: {error}"})
    return FilesAwayError()
