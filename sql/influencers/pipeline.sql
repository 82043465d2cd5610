-- Every minute, reads each active influencer once from the upstream API: a timeline of readings, running totals for each
-- influencer, and the fetches that failed.
--
--   heartbeat -> ticks -> lists -> due -> replies -> readings -> follower_timeline
--                                                             -> influencer_summary
--                                               -> failures -> fetch_dead_letters
--
-- Needs the UDFs active_influencers and fetch_influencer (udfs/), and the schema of clickhouse/migrations.

-- Where rows come from and go to.

-- As many beats a second as there are shards: a minute of which only a second was seen has all of them.
CREATE TABLE heartbeat WITH (connector = 'impulse', type = 'source', event_rate = '64');

CREATE TABLE follower_timeline (
  pk BIGINT NOT NULL,
  minute TIMESTAMP NOT NULL,
  follower_count BIGINT NOT NULL,
  following_count BIGINT NOT NULL,
  fetched_at TIMESTAMP NOT NULL
) WITH (connector = 'clickhouse', type = 'sink', url = '{{ CLICKHOUSE_URL }}', database = 'tickhouse', table = 'follower_timeline');

CREATE TABLE influencer_summary (
  pk BIGINT PRIMARY KEY,
  username TEXT NOT NULL,
  follower_count BIGINT NOT NULL,
  following_count BIGINT NOT NULL,
  total_follower_sum BIGINT NOT NULL,
  readings_count BIGINT NOT NULL,
  last_updated TIMESTAMP NOT NULL
) WITH (connector = 'clickhouse', type = 'sink', url = '{{ CLICKHOUSE_URL }}', database = 'tickhouse', table = 'influencer_summary');

CREATE TABLE fetch_dead_letters (
  minute TIMESTAMP NOT NULL,
  pk BIGINT NOT NULL,
  reason TEXT NOT NULL,
  status BIGINT NOT NULL,
  attempts BIGINT NOT NULL,
  message TEXT NOT NULL,
  reply TEXT NOT NULL
) WITH (connector = 'clickhouse', type = 'sink', url = '{{ CLICKHOUSE_URL }}', database = 'tickhouse', table = 'fetch_dead_letters');

-- Totals are kept for an influencer that was not read for this long; then they would begin anew.
SET updating_ttl = interval '3650 days';

-- One row for each of 64 shards at each minute's end. The shards spread the work over subtasks.
CREATE VIEW ticks AS
SELECT window.end AS minute, shard
FROM (
  SELECT tumble(interval '1 minute') AS window, CAST(counter % 64 AS BIGINT) AS shard, count(*) AS beats
  FROM heartbeat
  GROUP BY window, shard
);

-- The registry's answer for each shard: a JSON array of keys.
CREATE VIEW lists AS
SELECT minute, active_influencers(shard, 64) AS pks FROM ticks;

CREATE VIEW due AS
SELECT minute, CAST(pk AS BIGINT) AS pk
FROM (SELECT minute, unnest(extract_json(pks, '$[*]')) AS pk FROM lists);

-- The seam: what was fetched is kept once and read by all that follows. On a cluster this is a Kafka topic.
CREATE TABLE replies (minute TIMESTAMP, pk BIGINT, reply TEXT);

-- One API call for each row; with FETCH_WINDOW_MS=60000 in the environment none goes on into the next minute.
INSERT INTO replies
SELECT minute, pk, fetch_influencer(pk) FROM due;

-- A reading belongs to its minute: one that comes after it is stale, and a dead letter.
CREATE VIEW judged AS
SELECT
  minute,
  pk,
  reply,
  json_get_bool(reply, 'ok') AS ok,
  to_timestamp_micros(json_get_int(reply, 'fetched_at_micros')) AS fetched_at,
  to_timestamp_micros(json_get_int(reply, 'fetched_at_micros')) < minute + interval '1 minute' AS in_time
FROM replies;

-- One row for each reply that holds a reading.
CREATE TABLE readings (
  minute TIMESTAMP,
  pk BIGINT,
  username TEXT,
  follower_count BIGINT,
  following_count BIGINT,
  fetched_at TIMESTAMP
);

INSERT INTO readings
SELECT
  minute,
  pk,
  json_get_str(reply, 'username'),
  json_get_int(reply, 'follower_count'),
  json_get_int(reply, 'following_count'),
  fetched_at
FROM judged
WHERE ok AND in_time;

INSERT INTO follower_timeline
SELECT pk, minute, follower_count, following_count, fetched_at FROM readings;

-- Counts only ever grow: total_follower_sum and readings_count are those of the timeline.
INSERT INTO influencer_summary
SELECT
  pk,
  last_value(username ORDER BY minute),
  last_value(follower_count ORDER BY minute),
  last_value(following_count ORDER BY minute),
  sum(follower_count),
  count(*),
  max(fetched_at)
FROM readings
GROUP BY pk;

INSERT INTO fetch_dead_letters
SELECT
  minute,
  pk,
  CASE WHEN ok THEN 'stale' ELSE coalesce(json_get_str(reply, 'error'), 'malformed_reply') END,
  coalesce(json_get_int(reply, 'status'), 0),
  coalesce(json_get_int(reply, 'attempts'), 0),
  CASE WHEN ok THEN 'the reading came after its minute' ELSE coalesce(json_get_str(reply, 'message'), '') END,
  coalesce(reply, '')
FROM judged
WHERE NOT coalesce(ok AND in_time, false);
