"""train.py with tiny networks on tiny images, in a process that a test may kill."""

import functools

import stubs
import train
from efficientad import training_run
from efficientad.errors import run_command
from efficientad.networks import EfficientAD


def use_tiny_detector():
    stubs.use_tiny_networks()
    training_run.EfficientAD = functools.partial(EfficientAD, image_size=64)


if __name__ == "__main__":
    use_tiny_detector()
    run_command(train.main, train.get_parser())
