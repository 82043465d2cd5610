-- What analysts and dashboards read.

-- One row per influencer, superseded rows left out.
CREATE VIEW IF NOT EXISTS influencers AS
SELECT
    pk,
    username,
    follower_count,
    following_count,
    follower_ratio,
    average_followers,
    total_follower_sum,
    readings_count,
    last_updated,
    pk IN (SELECT pk FROM active_influencers FINAL WHERE active) AS active
FROM influencer_summary FINAL;

-- Influencers by followers, the largest first. Equal counts share a rank; the next rank counts them.
CREATE VIEW IF NOT EXISTS influencer_ranking AS
SELECT
    rank() OVER (ORDER BY follower_count DESC) AS follower_rank,
    pk,
    username,
    follower_count,
    average_followers,
    follower_ratio,
    last_updated
FROM influencers
ORDER BY follower_rank, pk;

-- One row over all influencers. A mean of means would weigh a new influencer like an old one, so the average over all readings
-- divides the sums.
CREATE VIEW IF NOT EXISTS global_averages AS
SELECT
    count()                                                          AS influencers,
    sum(readings_count)                                              AS readings,
    sum(total_follower_sum) / greatest(sum(readings_count), 1)       AS average_followers,
    sum(follower_count) / greatest(count(), 1)                       AS average_current_followers,
    max(last_updated)                                                AS last_updated
FROM influencer_summary FINAL;

-- The readings of the latest minute.
CREATE VIEW IF NOT EXISTS current_readings AS
SELECT pk, minute, follower_count, following_count, fetched_at
FROM follower_timeline
WHERE minute = (SELECT max(minute) FROM follower_timeline);

-- Per minute: how many readings arrived, how many fetches failed, and how long after the minute's end the last one came.
-- A condition on `minute` reaches both tables.
CREATE VIEW IF NOT EXISTS fetches_per_minute AS
SELECT
    minute,
    countIf(ok)                                                       AS readings,
    countIf(not ok)                                                   AS failures,
    countIf(not ok) / count()                                         AS failure_share,
    sumIf(follower_count, ok) / greatest(countIf(ok), 1)              AS average_followers,
    maxIf(dateDiff('millisecond', minute, fetched_at), ok) / 1000     AS seconds_to_last_reading
FROM
(
    SELECT minute, true AS ok, follower_count, fetched_at FROM follower_timeline
    UNION ALL
    SELECT minute, false AS ok, 0 AS follower_count, minute::DateTime64(3, 'UTC') AS fetched_at FROM fetch_dead_letters
)
GROUP BY minute;

-- Failed fetches by minute and reason.
CREATE VIEW IF NOT EXISTS failures_per_minute AS
SELECT minute, reason, count() AS failures, uniqExact(pk) AS influencers, max(attempts) AS most_attempts
FROM fetch_dead_letters
GROUP BY minute, reason;
