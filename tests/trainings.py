"""What tests ask of a training of the custom set, and how they interrupt one."""

import csv
import os
import signal

import torch

from efficientad.training import loop as training_loop


def folder_of(output):
    return output / "trainings" / "custom"


def assert_same_model(one, other):
    one, other = (torch.load(folder_of(out) / "model.pt", weights_only=True)["state_dict"] for out in (one, other))
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


def read_log(output):
    with (folder_of(output) / "log.csv").open(newline="") as file:
        return [{key: row[key] for key in row if key != "images_per_s"} for row in csv.DictReader(file)]


def stop_at(monkeypatch, step):
    """The training gets a SIGTERM in its step number `step`."""
    learn = training_loop.Learner.step

    def learn_and_signal(self, *args):
        if self.steps_done == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return learn(self, *args)

    monkeypatch.setattr(training_loop.Learner, "step", learn_and_signal)
