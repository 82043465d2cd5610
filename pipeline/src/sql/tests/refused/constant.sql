CREATE TABLE events (id BIGINT, kind TEXT, at TIMESTAMP NOT NULL, tags TEXT[]) WITH (connector = 'lines', type = 'source');
CREATE TABLE changes (id BIGINT PRIMARY KEY, n BIGINT) WITH (connector = 'changes', type = 'source');
CREATE TABLE plain (id BIGINT, n BIGINT) WITH (connector = 'lines', type = 'sink');
CREATE TABLE updated (id BIGINT PRIMARY KEY, n BIGINT) WITH (connector = 'clickhouse', type = 'sink');

SELECT 'total' AS what FROM (SELECT count(*) FROM events)
