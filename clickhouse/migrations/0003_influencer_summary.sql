-- One row per influencer: the latest reading and the running totals. The pipeline writes a whole new row with a higher
-- `version`; read it through the view `influencers`, or with FINAL: without, superseded rows may still be there.
--
-- At every commit: readings_count and total_follower_sum equal count() and sum(follower_count) of the influencer's timeline.
CREATE TABLE IF NOT EXISTS influencer_summary
(
    pk                 Int64                COMMENT 'The influencer',
    username           String               COMMENT 'As the upstream last named it',
    follower_count     Int64                COMMENT 'Followers at the latest reading',
    following_count    Int64                COMMENT 'Accounts followed at the latest reading',
    total_follower_sum Int64                COMMENT 'Sum of follower_count over all readings',
    readings_count     Int64                COMMENT 'Number of readings',
    last_updated       DateTime64(3, 'UTC') COMMENT 'When the latest reading was fetched',
    version            UInt64               COMMENT 'Written by the sink; the highest wins',

    -- Computed when read, so that they cannot disagree with the columns they come from and a better formula needs no rewrite.
    average_followers  Float64 ALIAS total_follower_sum / greatest(readings_count, 1) COMMENT 'Mean of follower_count over all readings',
    follower_ratio     Float64 ALIAS follower_count / greatest(following_count, 1)    COMMENT 'Followers per account followed, latest reading'
)
ENGINE = ReplacingMergeTree(version)
ORDER BY pk
COMMENT 'Influencers: latest counts and running totals; read with FINAL or through the view influencers';
