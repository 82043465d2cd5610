-- Without a window: rows that change, keyed by the sink's PRIMARY KEY.
CREATE TABLE events (id BIGINT, kind TEXT) WITH (connector = 'lines');
CREATE TABLE totals (n BIGINT, kind TEXT PRIMARY KEY) WITH (connector = 'clickhouse');
SET updating_ttl = interval '2 hours';
INSERT INTO totals SELECT sum(id * 2), upper(kind) FROM events GROUP BY upper(kind) HAVING count(*) > 1;
SELECT DISTINCT kind FROM events;
SELECT count(*) AS n FROM events;
