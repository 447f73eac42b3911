import hashlib

import numpy as np
import pytest
import torch

from conftest import make_dataset
from efficientad.benchmarking import reference
from efficientad.data.datasets import find_test_samples, open_dataset
from efficientad.data.images import read_image
from efficientad.data.transforms import to_square
from efficientad.data.views import View
from efficientad.inference import prediction as prediction_module
from efficientad.inference.detectors import TorchDetector
from efficientad.inference.prediction import predict
from efficientad.system.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def samples(tmp_path):
    root = make_dataset(tmp_path / "set", train=2, test={"good": 4, "dent": 3})
    return find_test_samples(open_dataset("custom", root, "")).samples


def predict_all(model, samples, batch_size, workers=2, precision="fp32", **options):
    return list(predict(TorchDetector(model, CPU, precision), samples, batch_size, workers, **options))


def test_predictions_equal_the_plain_version(tiny_model, samples):
    for prediction in predict_all(tiny_model, samples, 3, keep_data=True):
        path = prediction.sample.path
        image = read_image(path)
        pixels = to_square(image, 256)[None] / 255
        with torch.inference_mode():
            expected = reference.anomaly_maps(tiny_model, pixels)[0].numpy()
        np.testing.assert_allclose(prediction.anomaly_map, expected, rtol=1e-3, atol=1e-2)
        assert prediction.score == pytest.approx(
            reference.scores(torch.from_numpy(expected)[None]).item(), rel=1e-3
        )
        assert prediction.anomaly_map.dtype == np.float32
        assert prediction.digest == hashlib.sha256(path.read_bytes()).hexdigest()
        assert prediction.image_size == image.size
        assert prediction.decode().tobytes() == image.tobytes()
        assert 0 < prediction.milliseconds < 10_000


def test_small_images_are_decoded_once_and_large_ones_again(tiny_model, samples, monkeypatch):
    """So that waiting images take bounded memory; the samples have 60 x 40 pixels."""
    decoded, decode_whole = [], View.decode_whole
    monkeypatch.setattr(View, "decode_whole", lambda *words: decoded.append(1) or decode_whole(*words))
    images = [read_image(sample.path).tobytes() for sample in samples]
    for kept, again in ((60 * 40, 0), (60 * 40 - 1, len(samples))):
        monkeypatch.setattr(prediction_module, "_PIXELS_KEPT", kept * 4 * (3 + 2))
        found = predict_all(tiny_model, samples, 3, keep_data=True)
        assert [prediction.decode().tobytes() for prediction in found] == images
        assert len(decoded) == again
    assert predict_all(tiny_model, samples, 3)[0].decode() is None


@pytest.mark.parametrize("batch_size", [2, 7, 16])
def test_batches_equal_singles(tiny_model, samples, batch_size):
    singles = predict_all(tiny_model, samples, 1, workers=0)
    batches = predict_all(tiny_model, samples, batch_size)
    assert [p.sample for p in batches] == [p.sample for p in singles] == samples
    np.testing.assert_allclose([p.score for p in batches], [p.score for p in singles], rtol=1e-4)


def test_bf16_is_close_to_fp32(tiny_model, samples):
    exact = np.array([p.score for p in predict_all(tiny_model, samples, 4)])
    rounded = np.array([p.score for p in predict_all(tiny_model, samples, 4, precision="bf16")])
    assert rounded.dtype == exact.dtype and (rounded != exact).any()
    np.testing.assert_allclose(rounded, exact, rtol=0.02)


def test_all_unreadable_images_are_named(tiny_model, samples):
    samples[1].path.write_text("text")
    samples[5].path.write_bytes(b"")
    with pytest.raises(UserError, match=rf"cannot read 2 images(.|\n)*{samples[1].path.name}(.|\n)*empty file"):
        predict_all(tiny_model, samples, 1)


def test_unreadable_images_can_be_skipped(tiny_model, samples):
    samples[1].path.write_text("text")
    problems = []
    predictions = predict_all(tiny_model, samples, 3, on_unreadable=problems.append)
    assert [p.sample for p in predictions] == [samples[0], *samples[2:]]
    assert len(problems) == 1 and str(samples[1].path) in str(problems[0])


def test_score_that_is_not_finite_is_an_error(tiny_model, samples):
    tiny_model.quantiles.fill_(float("nan"))
    with pytest.raises(UserError, match="is not finite"):
        predict_all(tiny_model, samples, 2)


class OnGpu(torch.Tensor):
    is_cuda = True


class Pinned(torch.Tensor):
    def copy_(self, source, non_blocking=False):
        """As from a GPU: the values come later."""
        assert non_blocking
        copies.append(lambda: torch.Tensor.copy_(self.as_subclass(torch.Tensor), source.as_subclass(torch.Tensor)))
        return self


class Event:
    def __init__(self, blocking):
        self.before = None

    def record(self):
        self.before, copies[:] = list(copies), []

    def synchronize(self):
        steps.append("waited")
        for copy in self.before:
            copy()


copies, steps = [], []


def test_maps_are_copied_from_a_gpu_while_it_works_on(tiny_model, samples, monkeypatch):
    """On a pretended one, whose copies arrive only when their event is waited for."""
    expected = predict_all(tiny_model, samples, 3)
    detector, empty = TorchDetector(tiny_model, CPU, "fp32"), torch.empty

    class GpuDetector:
        view = View()

        def images_per_pass(self, most):
            return most

        def __call__(self, pixels, inspected):
            steps.append("started")
            return detector(pixels, inspected).as_subclass(OnGpu)

    def pinned(shape, dtype, pin_memory):
        assert pin_memory
        return empty(shape, dtype=dtype).fill_(-1).as_subclass(Pinned)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", pinned)
    found = list(predict(GpuDetector(), samples, 3, 0))
    monkeypatch.undo()
    assert steps == ["started", "started", "waited", "started", "waited", "waited"]
    assert [one.score for one in found] == [one.score for one in expected]
    for one, plain in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.anomaly_map, plain.anomaly_map)


@pytest.mark.cuda
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_predictions_of_a_gpu_equal_those_of_the_cpu(tiny_model, samples, batch_size):
    expected = predict_all(tiny_model, samples, batch_size)
    gpu = torch.device("cuda")
    found = list(predict(TorchDetector(tiny_model.to(gpu), gpu, "fp32"), samples, batch_size, 2))
    assert all(torch.from_numpy(one.anomaly_map).is_pinned() for one in found)
    np.testing.assert_allclose([one.score for one in found], [one.score for one in expected], rtol=1e-3)
    for one, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.anomaly_map, plain.anomaly_map, rtol=1e-3, atol=0.05)
