"""Files damaged at random, the same in every run: each is read or refused, never another exception or a hang."""

import copy
import io
import json
import signal
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import draw_part
from deep_files import deep_png, deep_tiff
from efficientad.data.depth import Depth, Scale
from efficientad.data.images import UnreadableImageError, check_image, decode_image
from efficientad.data.views import FIT, View
from efficientad.detector.checkpoint import load_model, load_teacher_weights, save_model
from efficientad.detector.model import EfficientAD
from efficientad.preparation.orientation import read_header
from efficientad.system.errors import UserError
from originals import Originals, prepare

LIMIT = 60  # seconds; each test takes a few


def cases(count):
    """So many cases, chosen by the test's code alone."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.fixture(autouse=True)
def no_hang():
    def stop(*_):
        raise TimeoutError("a file has been read for a minute")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@st.composite
def damaged(draw, whole):
    """The bytes with a few of them replaced, removed or added, often near the beginning, or the end cut off."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, 200) | st.integers(0, len(data)))
        kind = draw(st.sampled_from(["replace", "insert", "remove", "cut"]))
        if kind == "cut":
            del data[at:]
        elif kind == "remove":
            del data[at : at + draw(st.integers(1, 40))]
        else:
            new = draw(
                st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]) | st.binary(max_size=8)
            )
            data[at : at + (len(new) if kind == "replace" else 0)] = new
    return bytes(data)


def image_bytes(file_format, mode="RGB", **options):
    buffer = io.BytesIO()
    image = draw_part(0, size=(24, 16))
    image = image if mode == "RGB" else image.convert("L").convert(mode)
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


DEPTH = Depth(Scale(4095.0, 1023.0), Scale(255.0))
TURNED = Image.Exif()
TURNED[0x0112] = 6
IMAGES = [
    *(image_bytes(name, exif=TURNED) for name in ("JPEG", "PNG", "WEBP", "TIFF")),
    *(image_bytes(name) for name in ("GIF", "BMP", "PPM")),
    image_bytes("TIFF", compression="tiff_lzw"),
    image_bytes("TIFF", mode="I;16"),
    image_bytes("TIFF", mode="F"),
    image_bytes("PNG", mode="I;16"),
    deep_png(np.full((16, 24, 4), 4000)),
    deep_tiff(np.full((16, 24, 3), 4000)),
    image_bytes("JPEG", progressive=True),
]


@cases(300)
@given(st.sampled_from(IMAGES).flatmap(damaged))
def test_damaged_images(data):
    for read in (
        lambda: decode_image(data, "x"),
        lambda: View(64, 64, depth=DEPTH).decode(data, "x"),
        lambda: read_header(data, "x"),
        lambda: check_image(io.BytesIO(data), "x"),
    ):
        try:
            read()
        except UnreadableImageError as error:
            assert str(error).startswith("x: ") and error.reason


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 1, 2, 3, 10**9, 2**63, 10**400, float("nan"), float("inf"), -1e308])
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["", "a.png", "../a.png", "/a.png", "C:\\a.png", "sub\\b.png", "\0", "\ud800", "good"]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def places(value):
    """Every container in a document with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from places(inner)


@st.composite
def changed(draw, document, values):
    """The document with a few of its parts replaced or removed."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        found = list(places(document))
        if found:
            container, key = draw(st.sampled_from(found))
            if draw(st.booleans()):
                container[key] = draw(values)
            else:
                del container[key]
    return document


COCO = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 60, "height": 40},
        {"id": 2, "file_name": "sub/b.png", "width": 60, "height": 40},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 8, 12, 6], "segmentation": [[1, 1, 9, 1, 9, 9]]},
        {
            "id": 2,
            "image_id": 2,
            "category_id": 12,
            "bbox": [1, 1, 5, 5],
            "segmentation": {"size": [40, 60], "counts": [100, 50, 2250]},
            "iscrowd": 1,
        },
        {"id": 3, "image_id": 2, "category_id": 3, "segmentation": {"size": [40, 60], "counts": "T3b02N2N1Oc0"}},
    ],
    "categories": [{"id": 3, "name": "dust"}, {"id": 12, "name": "bent"}],
}


@pytest.fixture
def annotated(tmp_path):
    made = Originals(tmp_path / "original")
    made.annotated("a.png", 3)
    made.annotated("sub/b.png", 12)
    made.good("1.png", "2.png")
    return made


def prepare_from(annotated, text):
    flags = annotated.flags()
    (annotated.root / "instance.json").write_bytes(text)
    with suppress(UserError):
        prepare(*flags, "--overwrite", "--preview", annotated.root / "preview", "--num_workers", 0)


@cases(100)
@given(changed(COCO, JSON_VALUES), st.booleans())
def test_changed_annotations(annotated, document, by_name):
    prepare_from(annotated, json.dumps(document).encode())


@cases(40)
@given(damaged(json.dumps(COCO).encode()))
def test_damaged_annotations(annotated, data):
    prepare_from(annotated, data)


def load(folder):
    try:
        model = load_model(folder, torch.device("cpu"))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        if max(model.view.size) <= 1000:  # others take long
            with torch.inference_mode():
                model(torch.zeros(1, 3, *model.view.size))


@cases(60)
@given(st.data())
def test_damaged_model_files(tiny_model, tmp_path, data):
    save_model(tiny_model, tmp_path / "model.pt", {"steps": 1})
    (tmp_path / "model.pt").write_bytes(data.draw(damaged((tmp_path / "model.pt").read_bytes())))
    load(tmp_path)


@cases(60)
@given(st.data())
def test_damaged_teachers_in_the_old_format(tiny_model, tmp_path, data):
    file = tmp_path / "teacher.pth"
    torch.save(tiny_model.teacher.state_dict(), file, _use_new_zipfile_serialization=False)
    file.write_bytes(data.draw(damaged(file.read_bytes())))
    with suppress(UserError):
        load_teacher_weights(EfficientAD(), file)


TENSORS = st.sampled_from(
    [
        torch.zeros(1, 384, 1, 1),
        torch.full((2, 2), float("nan")),
        torch.zeros(2, 2, dtype=torch.complex64),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, 2, device="meta"),
        torch.zeros(0),
        torch.zeros(()),
    ]
)


@cases(60)
@given(st.data())
def test_changed_model_files(tiny_model, tmp_path, data):
    save_model(tiny_model, tmp_path / "model.pt", {"steps": 1})
    contents = torch.load(tmp_path / "model.pt", weights_only=True)
    contents["calibration"] = {
        "scores": [1.0, 2.0, 3.0, 4.0],
        "target_fpr": 0.1,
        "threshold": 5.0,
        "rate_interval": [0.0, 0.2],
        "extrapolated": True,
    }
    torch.save(data.draw(changed(contents, JSON_VALUES | TENSORS)), tmp_path / "model.pt")
    load(tmp_path)


def half_ignored():
    buffer = io.BytesIO()
    mask = Image.new("1", (24, 16))
    mask.paste(1, (0, 0, 12, 16))
    mask.save(buffer, "PNG")
    return buffer.getvalue()


SEEN = View(64, 96, FIT, (0.0, 0.25, 1.0, 0.75), half_ignored(), DEPTH).as_dict()


@cases(300)
@given(st.data())
def test_changed_views(data):
    try:
        view = View.from_dict(data.draw(changed(SEEN, JSON_VALUES | TENSORS)))
    except (KeyError, TypeError, ValueError):
        return
    assert View.from_dict(view.as_dict()) == view
    if max(view.size) <= 1000:
        with suppress(UnreadableImageError):
            view.pixels(draw_part(0, size=(24, 16)), "x")
