"""clickhouse-connect against a server; the URL is the argument. Any failed check ends this with an error."""

import datetime
import sys
from urllib.parse import urlparse

import clickhouse_connect
from clickhouse_connect.driver.exceptions import DatabaseError
from clickhouse_connect.driver.external import ExternalData

address = urlparse(sys.argv[1])


def connect(**options):
    return clickhouse_connect.get_client(host=address.hostname, port=address.port, **options)


def check(found, expected):
    if found != expected:
        raise AssertionError(f"{found!r:.500} is not {expected!r:.500}")


def refused(action, part):
    try:
        action()
    except DatabaseError as error:
        if part not in str(error):
            raise AssertionError(f"{part!r} is not in {error}") from error
    else:
        raise AssertionError(f"no error with {part!r}")


client = connect()
client.command("CREATE DATABASE py")
client.command(
    "CREATE TABLE py.t (pk Int64, at DateTime64(3, 'UTC'), name LowCardinality(String), n Nullable(UInt32),"
    " tags Array(String), m Map(String, UInt8)) ENGINE = MergeTree ORDER BY pk"
)
rows = [
    [pk, datetime.datetime(2026, 1, 2, 3, 4, 5, 678000, datetime.timezone.utc), f"n{pk % 3}", pk if pk % 2 else None,
     ["a"] * (pk % 3), {"k": pk % 7}]
    for pk in range(5000)
]
columns = ["pk", "at", "name", "n", "tags", "m"]

# Inserts, compressed in every way that the client knows here, and not at all.
for compress in (True, False, "lz4", "zstd", "gzip"):
    writer = connect(compress=compress, database="py")
    summary = writer.insert("t", rows, column_names=columns)
    check(summary.written_rows, 5000)
    result = writer.query("SELECT * FROM t ORDER BY pk")
    check(result.column_names, tuple(columns))
    # The client gives UTC times without a zone.
    check([[pk, at.replace(tzinfo=datetime.timezone.utc), *rest] for pk, at, *rest in result.result_rows], rows)
    check(int(result.summary["result_rows"]), 5000)
    writer.command("TRUNCATE TABLE t")

# Parameters, settings and formats.
check(client.query("SELECT {a:Int64} + 1, {s:String}", parameters={"a": 41, "s": "it's\n\\"}).result_rows, [(42, "it's\n\\")])
check(client.command("SELECT getSetting('max_threads')", settings={"max_threads": 3}), 3)
check(client.raw_query("SELECT 1 AS x FORMAT JSONEachRow"), b'{"x":1}\n')
check(client.raw_insert("py.t", ["pk"], b"1\n2\n", fmt="TSV").written_rows, 2)

# A session: on by default, with its own temporary tables.
client.command("CREATE TEMPORARY TABLE mine (a UInt8)")
client.command("INSERT INTO mine VALUES (9)")
check(client.command("SELECT a FROM mine"), 9)
refused(lambda: connect().query("SELECT a FROM mine"), "UNKNOWN_TABLE")

# A large result in blocks, and an error in the middle of one.
with client.query_row_block_stream("SELECT number, toString(number) FROM numbers(500000)") as stream:
    check(sum(len(block) for block in stream), 500000)
client = connect()


def late():
    with client.query_row_block_stream("SELECT throwIf(number = 3000000, 'too late'), repeat('x', 20) FROM numbers(4000000)") as stream:
        for _ in stream:
            pass


refused(late, "too late")

# External data, and errors.
client = connect()
external = ExternalData(file_name="ids", data=b"1\n2\n3\n", fmt="TSV", structure="id UInt8")
check(client.query("SELECT sum(id) FROM ids", external_data=external).result_rows, [(6,)])
refused(lambda: client.query("SELECT * FROM nope"), "UNKNOWN_TABLE")
refused(lambda: client.command("SELEC 1"), "SYNTAX_ERROR")
refused(lambda: client.insert("py.t", [["x"]], column_names=["nope"]), "nope")
check(client.ping(), True)
print("all checks passed")
