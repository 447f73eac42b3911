"""train.py with tiny networks on tiny images, in a process that a test may kill."""

import os
import signal
import time

import stubs
import train
from efficientad.system import saving
from efficientad.system.errors import run_command
from efficientad.training import loop as training_loop


def die_in_step(step):
    """The second process is killed when it begins that step."""
    learn = training_loop.Learner.step

    def learn_or_die(self, *args):
        if self.steps_done == step and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return learn(self, *args)

    training_loop.Learner.step = learn_or_die


def stop_in_step(step):
    """The first process gets a SIGTERM when it begins that step, and saves slowly."""
    learn, write = training_loop.Learner.step, saving.write_atomically

    def learn_and_signal(self, *args):
        if self.steps_done == step and os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(self, *args)

    def write_slowly(*args):
        time.sleep(1)
        write(*args)

    training_loop.Learner.step, saving.write_atomically = learn_and_signal, write_slowly


if __name__ == "__main__":
    stubs.use_tiny_networks()
    if "STOP_IN_STEP" in os.environ:
        stop_in_step(int(os.environ["STOP_IN_STEP"]))
    if "DIE_IN_STEP" in os.environ:
        die_in_step(int(os.environ["DIE_IN_STEP"]))
    run_command(train.main, train.get_parser())
