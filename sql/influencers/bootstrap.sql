-- Fills the registry with the first {{ INFLUENCERS }} of the upstream's influencers, and ends. Running it again changes
-- nothing but the time of the rows; an influencer that was retired is active again.

CREATE TABLE numbers WITH (connector = 'impulse', type = 'source', message_count = '{{ INFLUENCERS }}');

-- A row that is written twice does no harm in the registry, and its table remembers no inserts.
CREATE TABLE active_influencers (
  pk BIGINT NOT NULL,
  active BOOLEAN NOT NULL
) WITH (connector = 'clickhouse', type = 'sink', url = '{{ CLICKHOUSE_URL }}', database = 'tickhouse', table = 'active_influencers',
  delivery = 'at_least_once');

INSERT INTO active_influencers
SELECT CAST(1000000 + counter AS BIGINT), true FROM numbers;
