"""The command line that is noted with a result gives the same arguments again."""

import shlex

import pytest

import eval as eval_script
import train as train_script
from efficientad.arguments import command_line


@pytest.mark.parametrize(
    ("script", "words", "noted"),
    [
        (eval_script, [], "python eval.py"),
        (eval_script, ["-T", "auto"], "python eval.py"),
        (
            eval_script,
            ["-d", "custom", "-c", "a b", "--thresholds", "1", "2.5", "--no_report", "-T", "80"],
            "python eval.py --dataset custom --custom_dataset_path 'a b' --threshold 80.0 --thresholds 1.0 2.5 "
            "--no_report",
        ),
        (
            train_script,
            ["-i", "x", "y", "--overwrite", "-e", "3"],
            "python train.py --epochs 3 --imagenet_train_path x y --overwrite",
        ),
    ],
)
def test_noted_command_lines(script, words, noted):
    args = script.get_parser().parse_args(words)
    line = command_line(script.get_parser(), args)
    assert line == noted
    assert script.get_parser().parse_args(shlex.split(line)[2:]) == args
