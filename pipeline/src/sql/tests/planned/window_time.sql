-- The time of a window's row is not that of the rows in it: no condition on it goes below the window.
CREATE TABLE events (id BIGINT, kind TEXT, at TIMESTAMP NOT NULL, WATERMARK FOR at) WITH (connector = 'lines');
CREATE VIEW counted AS SELECT kind, tumble(interval '10 seconds') AS w, count(*) AS n FROM events GROUP BY kind, w;
CREATE TABLE a WITH (connector = 'blackhole');
INSERT INTO a SELECT n, row_time() AS at FROM counted WHERE kind > 'a' AND row_time() < TIMESTAMP '2020-01-01';
