-- Fetches that gave no reading, once each, with the reason. Kept at least 90 days after they were written: whole months are
-- dropped, nothing is rewritten. The clock of that is `recorded_at`, so that replaying old minutes loses none.
CREATE TABLE IF NOT EXISTS fetch_dead_letters
(
    minute      DateTime('UTC') COMMENT 'End of the minute that asked for the reading' CODEC(Delta, ZSTD(1)),
    pk          Int64 COMMENT 'The influencer' CODEC(Delta, ZSTD(1)),
    reason      LowCardinality(String) COMMENT 'The kind of failure: not_found, timeout, bad_body and so on',
    status      Int64 COMMENT 'HTTP status of the last attempt; 0 when there was no answer' CODEC(T64, ZSTD(1)),
    attempts    Int64 COMMENT 'Attempts made' CODEC(T64, ZSTD(1)),
    message     String COMMENT 'The error in words' CODEC(ZSTD(3)),
    reply       String COMMENT 'What the fetch gave, as it came' CODEC(ZSTD(3)),
    recorded_at DateTime('UTC') DEFAULT now() COMMENT 'When this row was written' CODEC(Delta, ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (minute, pk)
TTL recorded_at + INTERVAL 90 DAY DELETE
SETTINGS non_replicated_deduplication_window = 10000, ttl_only_drop_parts = 1
COMMENT 'Fetches that failed, with the reason';
