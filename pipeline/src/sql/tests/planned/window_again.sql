-- Columns that the keys determine, a second name of the window among them, are no keys unless they are read.
CREATE TABLE events (id BIGINT, kind TEXT, at TIMESTAMP NOT NULL, WATERMARK FOR at) WITH (connector = 'lines');
CREATE VIEW counted AS SELECT kind, tumble(interval '10 seconds') AS w, count(*) AS n FROM events GROUP BY kind, w;
CREATE TABLE a WITH (connector = 'blackhole');
CREATE VIEW named AS SELECT kind, w, w AS again, n FROM counted;
INSERT INTO a SELECT kind, w.end, count(*) AS m FROM named GROUP BY kind, w HAVING count(*) > 0;
INSERT INTO a SELECT n, w, count(*) AS m FROM counted GROUP BY kind, w;
