-- A window over a window: by its column, or by the same call again.
CREATE TABLE events (id BIGINT, kind TEXT, at TIMESTAMP NOT NULL, WATERMARK FOR at AS at - interval '5 seconds')
WITH (connector = 'lines', idle_micros = '1000000');
CREATE VIEW counted AS
SELECT kind, tumble(interval '10 seconds') AS w, count(*) AS n, sum(id) FILTER (WHERE id > 3) AS s, count(DISTINCT id) AS d
FROM events WHERE kind <> 'x' GROUP BY kind, w;
CREATE TABLE a WITH (connector = 'blackhole');
INSERT INTO a SELECT w.start, max(n) AS top FROM counted WHERE w.start > TIMESTAMP '2020-01-01' GROUP BY w;
INSERT INTO a SELECT tumble(interval '10 seconds') AS again, kind, avg(n) AS n FROM counted GROUP BY again, kind HAVING avg(n) > 2;
