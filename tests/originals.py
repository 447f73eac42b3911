"""Annotated and good images for prepare_dataset.py, made entry by entry, and a look at what it makes of them."""

import csv
import hashlib
import json

import prepare_dataset
from conftest import draw_part

BOX = [10, 8, 12, 6]


def prepare(*words):
    prepare_dataset.main(prepare_dataset.get_parser().parse_args([str(word) for word in words]))


class Originals:
    """A COCO file, annotated images and good images, made entry by entry."""

    def __init__(self, root):
        self.root = root
        self.coco = {
            "images": [],
            "annotations": [],
            "categories": [{"id": key, "name": name} for key, name in ((1, "LED"), (3, "dust"), (12, "bent"))],
        }
        (root / "images").mkdir(parents=True)
        (root / "normal").mkdir()

    def image(self, path, seed, size=(60, 40)):
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_part(seed, size=size).save(path)
        return path

    def annotated(self, name, *categories, seed=None, size=(60, 40), **annotation):
        number = len(self.coco["images"]) + 1
        self.image(self.root / "images" / name, 500 + number if seed is None else seed, size)
        entry = {"id": number, "file_name": name, "width": size[0], "height": size[1]}
        self.coco["images"].append(entry)
        for category in categories:
            self.coco["annotations"].append(
                {
                    "id": len(self.coco["annotations"]) + 1,
                    "image_id": number,
                    "category_id": category,
                    "bbox": BOX,
                    **annotation,
                }
            )
        return entry

    def good(self, *names):
        for name in names:
            self.image(self.root / "normal" / name, int(hashlib.sha256(name.encode()).hexdigest()[:8], 16))

    def flags(self, output="set"):
        (self.root / "instance.json").write_text(json.dumps(self.coco))
        return [
            *("--annotations", self.root / "instance.json", "--labeled_dir", self.root / "images"),
            *("--unlabeled_dir", self.root / "normal", "--output_dir", self.root / output),
        ]


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
