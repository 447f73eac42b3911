import sys

import numpy as np
import pytest
from PIL import Image

from efficientad.training.log import draw_training

HEADER = "step,hard,penalty,ae,stae,loss,lr,images_per_s\n"


def draw(tmp_path, rows):
    log = tmp_path / "log.csv"
    log.write_text(HEADER + "".join(f"{row}\n" for row in rows))
    draw_training(log, tmp_path / "training.png")
    with Image.open(tmp_path / "training.png") as image:
        assert image.format == "PNG" and image.size == (1200, 900)
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("steps", [1, 2, 7000])
def test_every_term_has_a_curve_unless_it_is_zero(tmp_path, steps):
    rows = [f"{10 * step},{3 + 1 / (step + 1)},0.2,1.1,0.05,4.5,0.0001,9.5" for step in range(steps)]

    def has_purple(rows):  # the penalty's curve
        return (draw(tmp_path, rows) == (138, 63, 160)).all(axis=-1).any()

    assert has_purple(rows)
    assert not has_purple([row.replace(",0.2,", ",0.000000,") for row in rows])


def test_aurocs_on_test_images_have_a_panel(tmp_path):
    rows = [f"{10 * step},3,0,1,0,4,0.0001,9,{0.9 if step % 3 == 0 else ''}" for step in range(1, 20)]
    (tmp_path / "log.csv").write_text(HEADER.replace("\n", ",test_auroc\n") + "\n".join(rows))
    draw_training(tmp_path / "log.csv", tmp_path / "training.png")
    with Image.open(tmp_path / "training.png") as image:
        assert image.size == (1200, 1140)
        assert (np.asarray(image.convert("RGB")) == (163, 36, 59)).all(axis=-1).any()


def test_a_log_with_other_columns_is_drawn(tmp_path):
    (tmp_path / "log.csv").write_text("seconds," + HEADER + "1,10,3,0,1,0,4,0.0001,9\n")
    draw_training(tmp_path / "log.csv", tmp_path / "training.png")
    assert (tmp_path / "training.png").is_file()


def test_without_matplotlib_a_training_still_ends_well(tmp_path, monkeypatch, capsys):
    (tmp_path / "log.csv").write_text(HEADER + "10,3,0,1,0,4,0.0001,9\n")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    draw_training(tmp_path / "log.csv", tmp_path / "training.png")
    assert "no training.png, since matplotlib is not installed" in capsys.readouterr().out
    assert not (tmp_path / "training.png").exists()
