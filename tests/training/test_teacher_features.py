"""The teacher's features, kept or not: the same, and as good as its own in float32."""

import pytest
import torch

from efficientad.data.transforms import to_unit_range
from efficientad.detector.model import EfficientAD
from efficientad.training.cache import TeacherFeatures

CPU = torch.device("cpu")
ONE_ANSWER = 2 * 384 * 56 * 56


def random_pixels(count):
    return torch.randint(0, 256, (count, 3, 256, 256), dtype=torch.uint8)


@pytest.mark.parametrize("budget", [0, 1.5 * ONE_ANSWER])
def test_a_budget_changes_nothing_but_time(tiny_model, budget):
    images = random_pixels(4)
    kept, short = TeacherFeatures(tiny_model, 1e9, CPU, "fp32"), TeacherFeatures(tiny_model, budget, CPU, "fp32")
    for order in ([0, 1], [2, 3], [3, 0], [2, 1]):  # the first time, and again
        indices = torch.tensor(order)
        assert torch.equal(kept(indices, images[indices]), short(indices, images[indices]))
    assert (len(kept), len(short)) == (4, budget // ONE_ANSWER)


def test_what_is_kept_is_not_computed_again(tiny_model):
    teacher_features = TeacherFeatures(tiny_model, 1e9, CPU, "fp32")
    images = random_pixels(2)
    first = teacher_features(torch.tensor([0, 1]), images)
    again = teacher_features(torch.tensor([1, 0]), torch.zeros(2, 3, 256, 256, dtype=torch.uint8))
    assert torch.equal(again, first.flip(0))


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_rounding_is_small_beside_the_spread(offset):
    """Also where a foreign teacher's mean is far from zero, or beyond float16 altogether."""
    torch.manual_seed(0)
    model = EfficientAD().eval()
    with torch.no_grad():
        model.teacher[-1].bias += offset
        model.teacher[-1].weight *= 10
    images = random_pixels(2)
    teacher_features = TeacherFeatures(model, 1e9, CPU, "fp32")(torch.arange(2), images)
    with torch.no_grad():
        exact = model.teacher(model.normalize(to_unit_range(images)))
    spread = (exact - exact.mean(dim=(0, 2, 3), keepdim=True)).square().mean().sqrt()
    assert (teacher_features - exact).abs().max() < 0.005 * spread


def test_an_image_without_any_structure_is_answered(tiny_model):
    teacher_features = TeacherFeatures(tiny_model, 1e9, CPU, "fp32")
    flat, other = torch.full((1, 3, 256, 256), 127, dtype=torch.uint8), random_pixels(1)
    for index, image in enumerate((flat, other)):
        answer = teacher_features(torch.tensor([index]), image)
        with torch.no_grad():
            torch.testing.assert_close(
                answer, tiny_model.teacher(tiny_model.normalize(to_unit_range(image))), atol=2e-3, rtol=1e-3
            )
