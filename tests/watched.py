"""predict --watch as a process of its own, with tiny networks."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Watch:
    """The command at work on tmp/in, writing to tmp/out."""

    def __init__(self, folder, *words):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, ROOT / "tests/predict_worker.py", "-w", folder, "--watch", folder / "in"]
        command += ["-o", folder / "out", "-T", "0", "--num_workers", "1", "--device", "cpu", *words]
        self.scores_file = folder / "out" / "scores.csv"
        self.log = folder / "log.txt"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                list(map(str, command)), env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def wait_for(self, condition):
        end = time.monotonic() + 60
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    def names(self):
        if not self.scores_file.exists():
            return []
        with self.scores_file.open(newline="") as file:
            return [Path(row["path"]).name for row in csv.DictReader(file)]

    def stop(self, number=signal.SIGINT):
        self.process.send_signal(number)
        assert self.process.wait(30) == 0, self.log.read_text()
        return self.log.read_text()
