-- Generated columns, event time, a source read twice, order of statements.
CREATE TABLE events (
  body JSON NOT NULL,
  at TIMESTAMP GENERATED ALWAYS AS (CAST(json_get_str(body, 'at') AS TIMESTAMP)) STORED,
  id BIGINT GENERATED ALWAYS AS (json_get_int(body, 'id'))
) WITH (connector = 'lines', path = 'x', event_time_field = 'at');
CREATE TABLE kept (id INT NOT NULL, at TIMESTAMP, doubled DOUBLE);
CREATE TABLE out (id INT, t TIMESTAMP) WITH (connector = 'lines', type = 'sink');
INSERT INTO out SELECT id, at FROM kept;
INSERT INTO kept (at, id) SELECT at, id FROM events;
SELECT body -> 'x' AS x, row_time() FROM events;
