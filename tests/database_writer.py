"""A process that writes visits to a prompt database: ``database_writer.py URL FIRST COUNT EACH``; tests kill it.

Says "ready" once the database is open, waits for a line, then says for each visit which detectors it wrote.
"""

import sys

from prompt_tables import whole_visit

from nightstream.errors import NightstreamError
from nightstream.io.database.prompt_database import open_database

url, first, number, each = sys.argv[1], *map(int, sys.argv[2:])
try:
    with open_database(url) as database:
        print("ready", flush=True)
        sys.stdin.readline()
        for visit in range(first, first + number):
            print(visit, *sorted(database.write(whole_visit(visit, each=each))), flush=True)
except NightstreamError as error:
    print("error", error, flush=True)
