"""A process that publishes visits and sends their alerts: ``facility_publisher.py URL FOLDER PAUSE VISIT:MJD:PRODUCT,... ...``.

Says "ready" once the database is open and waits for a line. Says "overtaken" whenever others wrote while it was at a visit,
which takes PAUSE seconds more than it need, and at the end how many alerts are unsent.
"""

import logging
import sys
import time
from pathlib import Path

from nightstream.engine.config import EngineConfig
from nightstream.io.alerts.distribution import FileSink
from nightstream.io.database.prompt_database import open_database
from nightstream.scheduler.publish import Publisher
from nightstream.scheduler.publish_queue import EndedVisit
from nightstream.scheduler.sender import Sender


class Overtaken(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if "somebody else wrote" in record.getMessage():
            print("overtaken", flush=True)


url, folder, pause = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
logging.getLogger("nightstream").addHandler(Overtaken())
logging.getLogger("nightstream").setLevel(logging.INFO)
with open_database(url, spool_dir=folder / "spool") as database:
    publisher = Publisher(
        database=database, engine=EngineConfig(), spool_dir=folder / "spool", schema_version="11.1",
        on_alerts=lambda batch: time.sleep(pause) or (),
    )  # fmt: skip
    sender = Sender(database, FileSink(folder / "alerts"), folder / "spool").start()
    print("ready", flush=True)
    sys.stdin.readline()
    for visit, mjd, products in (argument.split(":") for argument in sys.argv[4:]):
        publisher.publish(EndedVisit(int(visit), tuple(map(Path, products.split(","))), float(mjd)))
        sender.wake()
    sender.drain(30)
    sender.close()
    print("unsent", sum(file.n_unsent for file in database.unsent_files()), flush=True)
