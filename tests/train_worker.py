"""train.py with tiny networks on tiny images, in a process that a test may kill."""

import functools
import os
import signal
import time

import stubs
import train
from efficientad.detector.networks import EfficientAD
from efficientad.system import saving
from efficientad.system.errors import run_command
from efficientad.training import loop as training_loop
from efficientad.training import run as training_run


def use_tiny_detector():
    stubs.use_tiny_networks()
    training_run.EfficientAD = functools.partial(EfficientAD, image_size=64)


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
    use_tiny_detector()
    if "STOP_IN_STEP" in os.environ:
        stop_in_step(int(os.environ["STOP_IN_STEP"]))
    if "DIE_IN_STEP" in os.environ:
        die_in_step(int(os.environ["DIE_IN_STEP"]))
    run_command(train.main, train.get_parser())
