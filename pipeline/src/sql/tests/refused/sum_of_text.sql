CREATE TABLE src (id BIGINT, name TEXT) WITH (connector = 'lines', type = 'source');
CREATE TABLE out WITH (connector = 'blackhole');
INSERT INTO out SELECT id, sum(name) AS total FROM src GROUP BY id;
