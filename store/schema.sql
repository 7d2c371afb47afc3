-- The catalog, version 2. FORMAT.md explains it; times are ISO 8601 in UTC, file times nanoseconds since 1970.

CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE sets (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;

-- One row a commit. What is alive as of version v: added_in <= v and (removed_in is null or removed_in > v).
-- kind: sync (a run of extract), compact, revert, repair.
CREATE TABLE versions (
    id INTEGER PRIMARY KEY,
    set_id INTEGER NOT NULL REFERENCES sets,
    generation_id INTEGER NOT NULL REFERENCES generations,
    kind TEXT NOT NULL,
    run TEXT NOT NULL,
    command TEXT NOT NULL,
    created TEXT NOT NULL,
    added INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    removed INTEGER NOT NULL,
    failed INTEGER NOT NULL
) STRICT;

CREATE TABLE generations (
    id INTEGER PRIMARY KEY,
    set_id INTEGER NOT NULL REFERENCES sets,
    uuid TEXT NOT NULL UNIQUE,
    contract_hash TEXT NOT NULL,
    contract TEXT NOT NULL,
    parent_id INTEGER REFERENCES generations,
    created TEXT NOT NULL,
    source TEXT NOT NULL,
    versions TEXT NOT NULL,
    UNIQUE (set_id, contract_hash)
) STRICT;

-- From `version` on, readers of the set see this generation as of version `as_of`. `collected` says when gc took
-- away what only this version needs: it can no longer be read.
CREATE TABLE heads (
    set_id INTEGER NOT NULL REFERENCES sets,
    version INTEGER NOT NULL REFERENCES versions,
    generation_id INTEGER NOT NULL REFERENCES generations,
    as_of INTEGER NOT NULL,
    collected TEXT,
    PRIMARY KEY (set_id, version)
) STRICT, WITHOUT ROWID;

-- Versions that gc keeps, by name.
CREATE TABLE tags (
    set_id INTEGER NOT NULL REFERENCES sets,
    name TEXT NOT NULL,
    version INTEGER NOT NULL REFERENCES versions,
    created TEXT NOT NULL,
    PRIMARY KEY (set_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE columns (
    id INTEGER PRIMARY KEY,
    generation_id INTEGER NOT NULL REFERENCES generations,
    name TEXT NOT NULL,
    hash TEXT NOT NULL,
    spec TEXT NOT NULL,
    width INTEGER NOT NULL,
    UNIQUE (generation_id, name)
) STRICT;

-- `contents` says what stands in each row: the contents' ids, packed as FORMAT.md tells. Written once, whatever the
-- images are called.
CREATE TABLE segments (
    id INTEGER PRIMARY KEY,
    uuid TEXT NOT NULL UNIQUE,
    generation_id INTEGER NOT NULL REFERENCES generations,
    path TEXT NOT NULL,
    rows INTEGER NOT NULL,
    size INTEGER NOT NULL,
    checksum TEXT NOT NULL,
    added_in INTEGER NOT NULL,
    removed_in INTEGER,
    contents BLOB NOT NULL
) STRICT;

CREATE TABLE segment_columns (
    segment_id INTEGER NOT NULL REFERENCES segments,
    column_id INTEGER NOT NULL REFERENCES columns,
    offset INTEGER NOT NULL,
    PRIMARY KEY (segment_id, column_id)
) STRICT, WITHOUT ROWID;

-- Ids are given in the order of arrival and never twice; `meta` holds the next one under 'next_content'.
CREATE TABLE contents (sha256 BLOB PRIMARY KEY, id INTEGER NOT NULL) STRICT, WITHOUT ROWID;

-- `racy`: the file's times were too fresh to be trusted when it was looked at.
CREATE TABLE images (
    set_id INTEGER NOT NULL REFERENCES sets,
    id BLOB NOT NULL,
    added_in INTEGER NOT NULL,
    removed_in INTEGER,
    content_id INTEGER NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    racy INTEGER NOT NULL,
    PRIMARY KEY (set_id, id, added_in)
) STRICT, WITHOUT ROWID;

-- Files that gave no features under a generation.
CREATE TABLE failures (
    generation_id INTEGER NOT NULL REFERENCES generations,
    id BLOB NOT NULL,
    added_in INTEGER NOT NULL,
    removed_in INTEGER,
    kind TEXT NOT NULL,
    reason TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    first_at TEXT NOT NULL,
    last_at TEXT NOT NULL,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    ctime_ns INTEGER NOT NULL,
    racy INTEGER NOT NULL,
    PRIMARY KEY (generation_id, id, added_in)
) STRICT, WITHOUT ROWID;

-- Features that a column's dtype cannot hold: a fact of content and column, whatever the images are called.
CREATE TABLE refusals (
    content_id INTEGER NOT NULL,
    column_id INTEGER NOT NULL REFERENCES columns,
    added_in INTEGER NOT NULL,
    removed_in INTEGER,
    reason TEXT NOT NULL,
    at TEXT NOT NULL,
    PRIMARY KEY (content_id, column_id, added_in)
) STRICT, WITHOUT ROWID;

-- Which bundle of a name is in use: of the highest number. One row a promotion or rollback (kind); rows stay for ever.
-- `restores` is the number of the promotion that a rollback goes back to. Stores of earlier releases lack the table.
CREATE TABLE IF NOT EXISTS promotions (
    name TEXT NOT NULL,
    number INTEGER NOT NULL,
    kind TEXT NOT NULL,
    bundle TEXT NOT NULL,
    card_sha256 TEXT NOT NULL,
    created TEXT NOT NULL,
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    forced INTEGER NOT NULL,
    restores INTEGER,
    metrics TEXT NOT NULL,
    config TEXT NOT NULL,
    PRIMARY KEY (name, number)
) STRICT, WITHOUT ROWID;

-- Segments about to be named: one that is here and not in `segments` was cut off before its commit.
CREATE TABLE intents (uuid TEXT PRIMARY KEY, path TEXT NOT NULL) STRICT, WITHOUT ROWID;
