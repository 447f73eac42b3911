"""The command line that is noted with a result gives the same arguments again."""

import shlex

import pytest

import eval as eval_script
import train as train_script
from efficientad import pretrain
from efficientad.system.arguments import command_line


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


def test_seeds_that_would_overflow_are_refused(capsys):
    """A time stamp, say: streams of random numbers are numbered by multiples of the seed."""
    assert (
        pretrain.get_parser().parse_args(["--images", "x", "-o", "y", "--seed", str(2**32 - 1)]).seed == 2**32 - 1
    )
    for seed in ("-1", str(2**32), "20261126101112"):
        with pytest.raises(SystemExit):
            pretrain.get_parser().parse_args(["--images", "x", "-o", "y", "--seed", seed])
        assert f"must be 0 or more and below 4294967296, not {seed}" in capsys.readouterr().err
