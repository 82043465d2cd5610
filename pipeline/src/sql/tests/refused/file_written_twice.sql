CREATE TABLE src (id BIGINT) WITH (connector = 'single_file', path = 'in.jsonl');
CREATE TABLE dst WITH (connector = 'single_file', path = 'out.jsonl');
INSERT INTO dst SELECT id FROM src;
INSERT INTO dst SELECT id + 1 AS id FROM src;
