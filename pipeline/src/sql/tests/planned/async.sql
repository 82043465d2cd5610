-- An async call inside an expression, with an argument that is computed.
CREATE TABLE events (id BIGINT, kind TEXT) WITH (connector = 'lines');
SELECT kind, upper(json_get_str(fetch_influencer(id + 1), 'username')) AS name
FROM events WHERE id > 3;
CREATE TABLE sums WITH (connector = 'blackhole');
INSERT INTO sums
SELECT id, json_get_int(reply, 'a') + json_get_int(reply, 'b') AS s
FROM (SELECT id, kind, fetch_influencer(id) AS reply FROM events WHERE kind = 'x') WHERE json_get_int(reply, 'a') > 2;
