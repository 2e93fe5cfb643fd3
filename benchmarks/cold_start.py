"""From process start to the end of the first step: our command line against Ray Train.

Both start a Ray of their own and train the same job with two workers; runs alternate.
"""

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.crew import ROOT, user_environment
from benchmarks.figures import Report
from benchmarks.rivals.job import Workload
from elasticmoe.report.history import STEPS_FILE
from elasticmoe.spec.load import to_data

STEPS = 3
RUN_TIMEOUT_S = 240.0
CLI = "import sys; from elasticmoe.cli import main; sys.exit(main())"


def measure_cold_start(report: Report, workload: Workload, pairs: int) -> None:
    """Add `cold_start_vs_ray_train`; a first run of each fills the caches and does not count."""
    ours: list[float] = []
    rivals: list[float] = []
    for number in range(pairs + 1):
        sides = [(ours, start_ours), (rivals, start_ray_train)]
        for found, start in sides[:: -1 if number % 2 else 1]:
            seconds = start(workload)
            if number:
                found.append(seconds)
    tokens = workload.step_tokens
    report.section(f"cold start, 2 workers, {workload.preset}, {tokens} tokens a step")
    report.times("elasticmoe train: process start to first step", ours)
    report.times("Ray Train: process start to first step", rivals)
    ratio = statistics.median(ours) / statistics.median(rivals)
    report.figure("cold_start_vs_ray_train", ratio, most=0.5)


def start_ours(workload: Workload) -> float:
    """Run `elasticmoe train` to its end; seconds until its first step was committed."""
    home = Path(tempfile.mkdtemp(prefix="cold-start-"))
    try:
        job = workload.job(
            schedule={"steps": STEPS, "kind": "constant"},
            workers={"replicas": 2, "min": 2, "max": 2, "device": "cpu"},
            storage={"dir": str(home / "run")},
        )
        path = home / "job.toml"
        path.write_text(_as_toml(to_data(job)))
        launched_s = _run([sys.executable, "-c", CLI, "train", str(path)], home)
        first = json.loads((home / "run" / STEPS_FILE).read_text().splitlines()[0])
        return float(first["at_s"]) - launched_s
    finally:
        shutil.rmtree(home, ignore_errors=True)


def start_ray_train(workload: Workload) -> float:
    """Run the rival to its end; seconds until its first step was done on every worker."""
    home = Path(tempfile.mkdtemp(prefix="cold-start-"))
    try:
        script = ROOT / "benchmarks" / "rivals" / "ray_train.py"
        events = home / "events.jsonl"
        command = [sys.executable, str(script), *workload.flags()]
        launched_s = _run([*command, f"--steps={STEPS}", f"--events={events}"], home)
        lines = [json.loads(line) for line in events.read_text().splitlines()]
        first = [line["at_s"] for line in lines if line["event"] == "step" and line["step"] == 1]
        return float(max(first)) - launched_s
    finally:
        shutil.rmtree(home, ignore_errors=True)


def cold_workload(workload: Workload) -> Workload:
    """A small first step, so that starting up is what is measured."""
    return replace(workload, preset="quickstart", samples=8, seq_len=64, waves=2)


def _run(command: list[str], home: Path) -> float:
    """Run to the end; Unix time of its start. What it said is shown only if it failed."""
    output = home / "output.txt"
    with output.open("wb") as sink:
        launched_s = time.time()
        code = subprocess.call(
            command,
            env=user_environment(),
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            timeout=RUN_TIMEOUT_S,
        )
    if code:
        sys.stderr.write(output.read_text(errors="replace"))
        raise RuntimeError(f"{' '.join(command[:4])} ... ended with {code}")
    return launched_s


def _as_toml(table: dict[str, Any]) -> str:
    """TOML of nested tables; optional fields that are none are left out."""
    lines: list[str] = []

    def write(path: str, values: dict[str, Any]) -> None:
        plain = {k: v for k, v in values.items() if v is not None and not isinstance(v, dict)}
        if path:
            lines.append(f"[{path}]")
        lines.extend(f"{key} = {_toml_value(value)}" for key, value in plain.items())
        for key, value in values.items():
            if isinstance(value, dict):
                write(f"{path}.{key}" if path else key, value)

    write("", table)
    return "\n".join(lines) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        fields = ", ".join(f"{key} = {_toml_value(item)}" for key, item in value.items())
        return f"{{ {fields} }}"
    if isinstance(value, list):
        return f"[{', '.join(_toml_value(item) for item in value)}]"
    return json.dumps(value)  # strings, numbers and booleans are spelled alike
