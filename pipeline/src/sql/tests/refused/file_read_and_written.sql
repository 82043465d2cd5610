CREATE TABLE src (id BIGINT) WITH (connector = 'single_file', path = 'rows.jsonl');
CREATE TABLE dst WITH (connector = 'single_file', path = './rows.jsonl');
INSERT INTO dst SELECT id FROM src;
