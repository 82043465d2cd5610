-- One row per influencer and minute, never changed.
--
-- Sorted by influencer first: neighbouring rows are the same influencer a minute apart, which is what the codecs live on, and
-- one influencer's timeline is a few granules. A query by time alone is served by the part's range of `minute`, kept because
-- the partition key uses it: recent minutes lie in recent parts.
--
-- Codecs (measured, clickhouse/README.md): Delta leaves the step between two minutes, T64('bit') turns its bits into planes so
-- that the sign and the unused high bits cost nothing, ZSTD packs the rest. 64-bit counts cost as much as 32-bit ones would.
CREATE TABLE IF NOT EXISTS follower_timeline
(
    pk              Int64 COMMENT 'The influencer' CODEC(Delta, ZSTD(1)),
    minute          DateTime('UTC') COMMENT 'End of the minute that asked for this reading' CODEC(Delta, ZSTD(1)),
    follower_count  Int64 COMMENT 'Followers, as read' CODEC(Delta, T64('bit'), ZSTD(1)),
    following_count Int64 COMMENT 'Accounts followed, as read' CODEC(Delta, T64('bit'), ZSTD(1)),
    fetched_at      DateTime64(3, 'UTC') COMMENT 'When the upstream answered' CODEC(Delta, T64('bit'), ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (pk, minute)
-- Inserts remembered, so that a repeat under the same token is dropped: many checkpoints' worth.
SETTINGS non_replicated_deduplication_window = 10000
COMMENT 'Readings: one per influencer and minute';
