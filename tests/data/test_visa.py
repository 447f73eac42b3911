"""VisA as it is downloaded, and the names under which BTAD has its folders."""

import shutil

import pytest

from conftest import draw_part, fill_folder
from efficientad.data.datasets import find_categories, find_test_samples, find_training_images, open_dataset
from efficientad.system.errors import UserError

HEADER = "object,split,label,image,mask"


class Visa:
    """Folders as VisA's archive has them."""

    def __init__(self, root):
        self.root = root
        for category in ("candle", "cashew"):
            data = root / category / "Data"
            fill_folder(data / "Images" / "Normal", 6)
            fill_folder(data / "Images" / "Anomaly", 2, seed=10, defective=True)
            fill_folder(data / "Masks" / "Anomaly", 2, seed=20)
        normal = [
            f"candle,{'train' if number < 4 else 'test'},normal,candle/Data/Images/Normal/{number:03d}.png,"
            for number in range(6)
        ]
        defective = [
            f"candle,test,anomaly,candle/Data/Images/Anomaly/{name},candle/Data/Masks/Anomaly/{name}"
            for name in ("000.png", "001.png")
        ]
        cashew = [f"cashew,train,normal,cashew/Data/Images/Normal/00{number}.png," for number in range(5)]
        self.rows = [*cashew, *normal, *defective]
        self.write(self.rows)

    def write(self, rows, header=HEADER):
        (self.root / "split_csv").mkdir(exist_ok=True)
        (self.root / "split_csv" / "1cls.csv").write_text("\n".join([header, *rows]), encoding="utf-8")

    def open(self, category="candle"):
        return open_dataset("visa", self.root, category)


@pytest.fixture
def visa(tmp_path):
    return Visa(tmp_path / "VisA")


def test_visa_as_downloaded(visa):
    dataset, images = visa.open(), visa.root / "candle/Data/Images"
    assert (dataset.name, dataset.root) == ("visa/candle", visa.root / "candle")
    split = find_training_images(dataset, 42)
    assert (len(split.train), len(split.validation), split.notes) == (3, 1, [])
    assert sorted([*split.train, *split.validation]) == [images / f"Normal/00{number}.png" for number in range(4)]
    found = find_test_samples(dataset)
    masks = visa.root / "candle/Data/Masks/Anomaly"
    assert [(sample.path, sample.class_name, sample.image_name, sample.mask) for sample in found.samples] == [
        (images / "Anomaly/000.png", "anomaly", "000.png", masks / "000.png"),
        (images / "Anomaly/001.png", "anomaly", "001.png", masks / "001.png"),
        (images / "Normal/004.png", "good", "004.png", None),
        (images / "Normal/005.png", "good", "005.png", None),
    ]
    assert found.notes == [] and dataset.test_folder == images


def test_categories_of_visa_as_downloaded(visa):
    assert find_categories("visa", visa.root) == ["candle", "cashew"]
    with pytest.raises(UserError, match="no category 'pcb1' .*choose from candle, cashew"):
        visa.open("pcb1")
    with pytest.raises(UserError, match="lists no test images of cashew"):
        find_test_samples(visa.open("cashew"))


def test_what_the_split_leaves_out_is_told(visa):
    draw_part(77).save(visa.root / "candle/Data/Images/Normal/new.png")
    (visa.root / "candle/Data/Images/notes.txt").write_text("x")
    visa.write([row.replace("test,anomaly", "train,anomaly") for row in visa.rows])
    notes = find_training_images(visa.open(), 42).notes
    assert [note.split(",")[0] for note in notes] == [
        f"1 file is no image: {visa.root / 'candle/Data/Images/notes.txt'}",
        "1 image left out that split_csv/1cls.csv does not list",
        "2 defective images left out that split_csv/1cls.csv would train on",
    ]


def test_a_prepared_category_is_read_as_ever(visa):
    fill_folder(visa.root / "candle" / "train" / "good", 2)
    assert visa.open().split_file is None


@pytest.mark.parametrize(
    "name",
    [
        *("/etc/hostname.png", "candle/split.png", "../candle/Data/Images/Normal/000.png", ".", "candle"),
        *("candle/../../secret.png", "candle/Data/Images/../../../../secret.png", "candle/Data/Masks/../../x.png"),
        *("cashew/Data/Images/Normal/000.png", "C:/secret.png", "candle\\..\\secret.png"),
    ],
)
@pytest.mark.parametrize("column", ["image", "mask"])
def test_paths_outside_the_category_are_refused(visa, name, column):
    draw_part(0).save(visa.root.parent / "secret.png")
    row = f"candle,test,anomaly,{name}," if column == "image" else f"{visa.rows[-1].rsplit(',', 1)[0]},{name}"
    visa.write([*visa.rows[:-1], row])
    with pytest.raises(UserError, match=r"1cls.csv names .*, which is not inside candle/Data/"):
        find_test_samples(visa.open())


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (HEADER, ["candle,test"], "damaged: row 2 needs the columns object, split, label, image, mask"),
        (HEADER, ["candle,both,normal,candle/a.png,"], "damaged: row 2 needs .* as split train or test"),
        ("a;b", ["1;2"], "damaged: row 2"),
        ("", [], "lists no image of candle"),
        (HEADER, ['candle,test,normal,"' + "x" * 200_000 + '",'], "damaged .field larger"),
    ],
)
def test_damaged_splits(visa, header, rows, message):
    visa.write(rows, header)
    for find in (find_test_samples, lambda dataset: find_training_images(dataset, 42)):
        with pytest.raises(UserError, match=message):
            find(visa.open())


def test_a_split_that_is_no_text(visa):
    (visa.root / "split_csv" / "1cls.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="1cls.csv is damaged"):
        find_test_samples(visa.open())


def test_missing_and_repeated_files_are_named(visa):
    (visa.root / "candle/Data/Images/Normal/004.png").unlink()
    (visa.root / "candle/Data/Masks/Anomaly/000.png").unlink()
    with pytest.raises(
        UserError, match=r"(?s)2 files that .* are not there.*Normal/004.png.*Masks/Anomaly/000.png"
    ):
        find_training_images(visa.open(), 42)
    visa.write([*visa.rows[5:9], visa.rows[5].replace("train", "test")])
    with pytest.raises(UserError, match=r"(?s)lists 1 file more than once.*Normal/000.png"):
        find_test_samples(visa.open())


def test_masks_of_two_images_or_of_a_good_one_are_refused(visa):
    visa.write([*visa.rows[:-1], visa.rows[-1].replace("Masks/Anomaly/001", "Masks/Anomaly/000")])
    with pytest.raises(UserError, match=r"(?s)lists 1 file more than once.*Masks/Anomaly/000.png"):
        find_test_samples(visa.open())
    visa.write([*visa.rows[:-1], visa.rows[-1].replace("anomaly", "normal")])
    with pytest.raises(UserError, match=r"(?s)masks of defects for 1 good image.*Images/Anomaly/001.png"):
        find_test_samples(visa.open())


def test_without_the_split_the_command_is_named(visa):
    shutil.rmtree(visa.root / "split_csv")
    data = visa.root / "candle" / "Data"
    expected = (
        f"python prepare_dataset.py --annotations none --unlabeled_dir {data}/Images/Normal "
        f"--defect_dir {data}/Images/Anomaly --mask_dir {data}/Masks/Anomaly --output_dir dataset/candle"
    )
    for layout, path in (("visa", visa.root), ("mvtec_ad", visa.root), ("custom", visa.root / "candle")):
        with pytest.raises(UserError) as raised:
            open_dataset(layout, path, "candle")
        assert str(raised.value).endswith(expected) and "as it is downloaded" in str(raised.value)


def test_a_category_given_as_a_custom_set(visa):
    with pytest.raises(UserError, match=f"give --dataset visa --visa_path {visa.root} --subdataset candle"):
        open_dataset("custom", visa.root / "candle", "")


def test_btad(tmp_path):
    root = tmp_path / "BTech" / "01"
    fill_folder(root / "train" / "ok", 4)
    fill_folder(root / "test" / "ok", 2, seed=10)
    fill_folder(root / "test" / "ko", 2, seed=20, suffix=".bmp")
    dataset = open_dataset("mvtec_ad", tmp_path / "BTech", "01")
    assert len(find_training_images(dataset, 42).train) == 3
    assert [sample.class_name for sample in find_test_samples(dataset).samples] == ["good"] * 2 + ["ko"] * 2
