"""Stream visits of two detectors of 1024 x 1024 pixels through Ray actors: what a second actor brings, what Ray costs, and
whether memory stays flat.

    python perf/streaming.py [--visits 12] [--long 0] [--work DIR] [--name streaming-cpu]

One actor that has both detectors, then two with one each, a thread each. Rates are those between the first report of every
actor and the last report of all; overhead is what an actor's time is more than its jobs' own seconds. ``--long 200`` then
streams so many visits more through two actors and follows their memory. Every visit's products are looked at and removed.
Writes perf/records/<name>.json.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import record
from night import prepared_survey, worker_setup

from nightstream.scheduler.config import SchedulerConfig
from nightstream.scheduler.executor import make_executor, place_setups
from nightstream.scheduler.messages import DetectorReport
from nightstream.scheduler.run import RunHooks, Visit, VisitSummary, run_visits
from nightstream.simulate.survey import Survey

CAMERA, DETECTORS = "simulator", 2


class Watch:
    """Hooks that time every report, look at every visit, follow memory and remove products."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.reports: list[tuple[float, DetectorReport]] = []
        self.memory_gib: list[float] = []

    def hooks(self) -> RunHooks:
        return RunHooks(on_report=lambda report: self.reports.append((time.perf_counter(), report)), on_visit=self.end)

    def end(self, visit: VisitSummary) -> None:
        if not visit.is_complete or visit.counts.get("dia_sources", 0) == 0:
            raise SystemExit(f"wrong answer: visit {visit.visit}: {[f.error for f in visit.failed]}, {dict(visit.counts)}")
        self.memory_gib.append(actors_gib())
        for folder in self.output.glob(f"visit={visit.visit}*"):
            shutil.rmtree(folder)

    def cost(self, actors: int) -> dict[str, float]:
        """Rate and overhead once every actor has reported."""
        times, reports = zip(*self.reports, strict=True)
        seconds, jobs = times[-1] - times[actors - 1], len(times) - actors
        own = sum(sum(report.timings_s.values()) for report in reports[actors:])
        return {
            "detectors_per_s": round(jobs / seconds, 3),
            "seconds_a_detector": round(own / jobs, 4),
            "overhead": round(actors * seconds / own - 1, 4),
        }


def actors_gib() -> float:
    """Resident memory of all actors together."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue  # it has ended
        if lines["Name"].strip().startswith("ray::Detector"):
            total += int(lines.get("VmRSS", "0 kB").split()[0])
    return round(total / 2**20, 3)


def stream(plan: Survey, visits: list[Visit], actors: int, output: Path) -> Watch:
    """Process the visits with so many actors of one thread."""
    shutil.rmtree(output, ignore_errors=True)
    setups = {detector: worker_setup(plan, CAMERA, detector, output, "cpu") for detector in plan.detectors}
    config = SchedulerConfig(executor="ray", actors=actors, threads_per_actor=1)
    watch = Watch(output)
    run_visits(visits, place_setups(setups, actors), make_executor(config), config.policy(), watch.hooks())
    return watch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visits", type=int, default=12)
    parser.add_argument("--long", type=int, default=0, help="visits of the run whose memory is followed")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "nightstream-perf")
    parser.add_argument("--name", default="streaming-cpu")
    args = parser.parse_args()
    n_visits = max(args.visits, args.long)
    counts = {"bias": 5, "dark": 3, "flat": 3, "template": 4, "science": n_visits}
    plan = prepared_survey(args.work / f"streaming-{n_visits}", CAMERA, DETECTORS, counts)
    science = [visit for visit in plan.visits if visit.role == "science"]
    visits = [Visit(v.id, {d: str(plan.raw_path(v, d)) for d in plan.detectors}) for v in science]
    content = {"header": record.header("cpu"), "detectors": DETECTORS, "shape": [1024, 1024], "visits": args.visits, "actors": {}}
    for actors in (1, 2):
        cost = stream(plan, visits[: args.visits], actors, args.work / "streamed").cost(actors)
        content["actors"][actors] = cost
        ratio = cost["detectors_per_s"] / content["actors"][1]["detectors_per_s"]
        speed = f"{cost['detectors_per_s']:.3f} detectors / s ({ratio:.2f}x) | {cost['seconds_a_detector']:.3f} s each"
        print(f"stream 1024x1024 | {actors} actor{'s'[: actors > 1]} | {speed} | overhead {cost['overhead']:.1%}", flush=True)
    if args.long:
        memory = stream(plan, visits[: args.long], 2, args.work / "streamed").memory_gib
        tenth = max(1, len(memory) // 10)
        early, late = max(memory[tenth : 2 * tenth]), max(memory[-tenth:])
        content["memory"] = {"visits": len(memory), "second_tenth_gib": early, "last_tenth_gib": late, "gib": memory}
        print(f"memory of 2 actors over {len(memory)} visits: {early:.2f} GiB early on, {late:.2f} GiB at the end")
    print(record.write(args.name, content))


if __name__ == "__main__":
    main()
