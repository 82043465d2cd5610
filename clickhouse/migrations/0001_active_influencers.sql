-- The registry: which influencers are polled.
--
--   add     INSERT INTO active_influencers (pk) VALUES (1000000)
--   retire  INSERT INTO active_influencers (pk, active) VALUES (1000000, false)
--   read    SELECT pk FROM active_influencers FINAL WHERE active
--
-- The row written last wins. There is no deduplication window here: under one, adding an influencer again after retiring it is
-- taken for a repeat of the first INSERT and dropped. A repeated row does no harm in this engine.
CREATE TABLE IF NOT EXISTS active_influencers
(
    pk         Int64                          COMMENT 'The upstream''s key of the influencer',
    active     Bool DEFAULT true              COMMENT 'Polled once a minute while true',
    changed_at DateTime64(6, 'UTC') DEFAULT now64(6) COMMENT 'When this row was written; the latest wins'
)
ENGINE = ReplacingMergeTree(changed_at)
ORDER BY pk
COMMENT 'Registry: the influencers to poll';
