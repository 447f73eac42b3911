"""The command line that is noted with a result gives the same arguments again."""

import shlex
from pathlib import Path

import pytest

import eval as eval_script
import prepare_dataset
import train as train_script
from efficientad import benchmark, convert, export, predict, pretrain
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
        (
            predict,
            ["-w", "m", "-i", "a b", "c", "--print", "-T", "auto"],
            "python -m efficientad.predict --weights_dir m --input 'a b' c --print",
        ),
    ],
)
def test_noted_command_lines(script, words, noted):
    args = script.get_parser().parse_args(words)
    line = command_line(script.get_parser(), args)
    assert line == noted
    of_the_program = 3 if script is predict else 2
    assert script.get_parser().parse_args(shlex.split(line)[of_the_program:]) == args


def test_an_empty_output_is_not_the_current_folder(capsys):
    """As an unset variable of the shell leaves it: -o "$FOLDER"."""
    for command, words in ((train_script, []), (eval_script, []), (pretrain, ["--images", "x"])):
        with pytest.raises(SystemExit):
            command.get_parser().parse_args([*words, "-o", ""])
        assert "expects a name, not an empty word" in capsys.readouterr().err


def test_an_empty_input_is_not_the_current_folder(capsys):
    """Nor one of several."""
    commands = [
        (predict, ["-i", "x", "-w"], [""]),
        (predict, ["-w", "x", "-i"], ["a", ""]),
        (predict, ["-w", "x", "--watch"], [""]),
        (export, ["-w"], [""]),
        (pretrain, ["-o", "x", "--images"], [""]),
        (benchmark, ["--json"], [""]),
        (train_script, ["-c"], [""]),
        (train_script, ["--imagenet_train_path"], ["a", ""]),
        (eval_script, ["--mvtec_ad_path"], [""]),
        *(
            (prepare_dataset, [flag], [""])
            for flag in ("--annotations", "--unlabeled_dir", "--defect_dir", "--preview")
        ),
    ]
    for command, words, empty in commands:
        with pytest.raises(SystemExit):
            command.get_parser().parse_args([*words, *empty])
        assert "expects a name, not an empty word" in capsys.readouterr().err, (command, words)


def test_a_category_is_a_name(capsys):
    for text in ("../x", "..", ".", "/etc", "a/b", "a\\b", ""):
        for command in (train_script, eval_script):
            with pytest.raises(SystemExit):
                command.get_parser().parse_args(["-s", text])
            assert "-s/--subdataset: expects " in capsys.readouterr().err
    assert train_script.get_parser().parse_args(["-s", "metal nut.2"]).subdataset == "metal nut.2"


def test_texts_that_are_no_numbers_are_errors_that_say_what_is_expected(capsys):
    words = ["--images", "x", "-o", "y"]
    for flag, text, expected in (
        ("--seed", "x", "a whole number >= 0 and < 4294967296"),
        ("--relight", "x", "a number >= 1"),
        ("--steps", "1.5", "a whole number >= 1"),
        ("--lr", "nan", "a number > 0"),
        ("--crop_scale", "2", "a number > 0 and <= 1"),
        ("--cache_gb", "inf", "a number >= 0"),
    ):
        with pytest.raises(SystemExit):
            pretrain.get_parser().parse_args([*words, flag, text])
        assert f"{flag}: expects {expected}, not '{text}'" in capsys.readouterr().err


def test_threads_are_counted_by_the_cores_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert train_script.get_parser().parse_args([]).num_workers == 1


def test_seeds_that_would_overflow_are_refused(capsys):
    """A time stamp, say."""
    assert (
        pretrain.get_parser().parse_args(["--images", "x", "-o", "y", "--seed", str(2**32 - 1)]).seed == 2**32 - 1
    )
    for seed in ("-1", str(2**32), "20261126101112"):
        with pytest.raises(SystemExit):
            pretrain.get_parser().parse_args(["--images", "x", "-o", "y", "--seed", seed])
        assert f"expects a whole number >= 0 and < 4294967296, not '{seed}'" in capsys.readouterr().err


def test_devices_by_name(capsys):
    for name in ("auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps"):
        for command in (train_script, eval_script, benchmark):
            assert command.get_parser().parse_args(["--device", name]).device == name
    for name in ("gpu", "cuda:", "cuda:x", "cuda:-1", "mps:0", ""):
        with pytest.raises(SystemExit):
            train_script.get_parser().parse_args(["--device", name])
        assert f"expects auto, cpu, cuda, a GPU as in cuda:1, or mps, not '{name}'" in capsys.readouterr().err


def test_the_rate_of_false_positives_is_defined_once():
    root = Path(train_script.__file__).parent
    files = [*root.glob("*.py"), *root.glob("efficientad/**/*.py")]
    assert sum(file.read_text().count('"--target_fpr"') for file in files) == 1
    for script in (train_script, convert):
        assert "--target_fpr" in script.get_parser().format_help()
