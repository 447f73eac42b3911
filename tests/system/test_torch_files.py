"""Torch files that would become more than they hold, or that are no files, are refused in seconds."""

import io
import os
import pickle
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import train as train_script
from conftest import fail
from efficientad.pretraining.backbone_weights import file_digest, read_weights
from efficientad.system import pickles, torch_files
from efficientad.system.errors import UserError
from efficientad.system.torch_files import read_torch_file


def repeated(kind, times=45):
    """Small in a file, and 2**times items when written out."""
    value = kind(["lol"])
    for _ in range(times):
        value = kind([value, value])
    return value


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def widely_repeated():
    """Not deep, but a million times a million items."""
    value = list(range(200))
    for _ in range(6):
        value = [value] * 200
    return value


def in_itself():
    value = []
    value.append(value)
    return value


def stretched(count, stored=1):
    return torch.zeros(stored).as_strided((count,), (0,))


def overlapping():
    whole = torch.zeros(1000)
    return {f"{number}": whole[: 1000 - number] for number in range(100)}


DEEP, MANY, STRETCHED = (
    "nested more than 20 deep",
    "written out, it would be many times its size",
    "has more elements",
)
FOREIGN = "tensors of a kind that no detector or teacher has"
REFUSED = {
    "lists": (lambda: {"training": {"steps": repeated(list)}}, DEEP),
    "tuples": (lambda: {"config": repeated(tuple)}, DEEP),
    "dicts": (lambda: {"versions": dict.fromkeys("ab", repeated(list))}, DEEP),
    "a few levels": (lambda: {"a": widely_repeated()}, MANY),
    "levels below the limit": (lambda: {"a": repeated(list, 18)}, MANY),
    "deep": (lambda: nested(200), DEEP),
    "in itself": (in_itself, "or itself"),
    "a tuple as a key": (lambda: {repeated(tuple, 12): 1}, "keys that are neither numbers nor text"),
    "stretched": (lambda: {"w": stretched(10**15)}, STRETCHED),
    "stretched a little": (lambda: {"w": stretched(3, 2)}, STRETCHED),
    "stretched in a list": (lambda: [[torch.zeros(1).as_strided((10**5, 10**5), (0, 0))]], STRETCHED),
    "overlapping": (overlapping, "have more elements"),
    "float8": (lambda: {"w": torch.zeros(3).to(torch.float8_e4m3fn)}, FOREIGN),
    "complex": (lambda: {"w": torch.zeros(3, dtype=torch.complex64)}, FOREIGN),
    "sparse": (lambda: {"w": torch.eye(3).to_sparse()}, FOREIGN),
    "on no device": (lambda: {"w": torch.zeros(3, device="meta")}, FOREIGN),
    "quantized": (lambda: {"w": torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)}, FOREIGN),
    "a type": (lambda: {"w": torch.float32}, FOREIGN),
    "a bytearray": (lambda: bytearray(10), "holds pickled Python objects"),
    "a set": (lambda: {1, 2}, "is not a torch file|holds pickled Python objects"),
    "a long number": (lambda: {"version": 10**100}, "more than 38 digits"),
    "a very long number": (lambda: {"version": 10**4000}, "uses LONG4"),
    "a function": (lambda: print, "holds pickled Python objects"),
    "a network": (lambda: nn.Linear(2, 2), "holds pickled Python objects"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("as_zip", [True, False])
def test_what_would_become_more_than_it_holds(tmp_path, monkeypatch, name, as_zip):
    make, message = REFUSED[name]
    path = tmp_path / "x.pt"
    torch.save(make(), path, _use_new_zipfile_serialization=as_zip)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("was loaded"))
    start = time.monotonic()
    with pytest.raises(UserError, match=message) as raised:
        read_torch_file(path)
    assert time.monotonic() - start < 10 and "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300 + len(str(path))


def test_a_list_that_grows_once_it_is_held(tmp_path):
    """[[], []] twice the same list, which then gets an item: its holders have counted it without."""
    stream = b"\x80\x02]q\x00]q\x01h\x00ah\x00ah\x00(K\x01K\x02e."
    path = tmp_path / "x.pt"
    torch.save([1], path)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "y.pt", "w") as other:
        for entry in whole.namelist():
            other.writestr(entry, stream if entry.endswith("data.pkl") else whole.read(entry))
    with pytest.raises(UserError, match="grows when it is already part of another"):
        read_torch_file(tmp_path / "y.pt")


def test_more_values_than_a_state_has(tmp_path, monkeypatch):
    torch.save([1.0] * 100, tmp_path / "x.pt")
    monkeypatch.setattr(pickles, "_MOST_INSTRUCTIONS", 90)
    with pytest.raises(UserError, match="it has more than 90 values"):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize("as_zip", [True, False])
def test_what_trainings_save_is_read(tmp_path, as_zip):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    names = {f"train/{number}.png": f"{number:016x}" for number in range(5000)}
    contents = {
        "network": network.state_dict(),  # an OrderedDict with metadata
        "parameter": network[0].weight,
        "optimizer": optimizer.state_dict(),
        "noise": (torch.get_rng_state(), None),
        "images": names,
        "plain": [
            1,
            -1,
            2**40,
            2**100,
            1.5,
            True,
            None,
            "text",
            b"bytes",
            (),
            [],
            {},
            OrderedDict(a=1),
            (1, (2, 3)),
        ],
        "transposed": torch.rand(3, 4).T,
        "part": torch.rand(10)[2:5],
        "empty": torch.zeros(0, 5),
        "types": [
            torch.zeros(2, dtype=getattr(torch, name)) for name in ("half", "bfloat16", "int64", "bool", "uint8")
        ],
        "size": torch.zeros(2, 3).shape,
    }
    path = tmp_path / "x.pt"
    torch.save(contents, path, _use_new_zipfile_serialization=as_zip)
    read = read_torch_file(path)
    assert read["plain"] == contents["plain"] and read["images"] == names and read["size"] == (2, 3)
    for key in ("transposed", "part", "empty", "parameter"):
        assert torch.equal(read[key], contents[key])
    assert torch.equal(read["optimizer"]["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
    assert read["network"].keys() == contents["network"].keys()


def change_entries(path, change):
    with zipfile.ZipFile(path) as whole:
        entries = [(entry, whole.read(entry)) for entry in whole.namelist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in change(entries):
            archive.writestr(name, data)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    "change",
    [
        lambda entries: [*entries, ("other/data.pkl", pickle.dumps([1], 2))],
        lambda entries: [*entries, entries[0]],
        lambda entries: [entry for entry in entries if not entry[0].endswith("data.pkl")],
        lambda entries: [],
    ],
)
def test_zip_files_that_two_readers_could_read_differently(tmp_path, change):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(3)}, path)
    change_entries(path, change)
    with pytest.raises(UserError, match="is not a torch file, or damaged"):
        read_torch_file(path)


def test_a_storage_that_is_shorter_than_the_pickle_says(tmp_path):
    """torch would read whatever lies behind it in memory."""
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(1000)}, path)
    change_entries(path, lambda entries: [(n, d[:40] if "/data/" in n else d) for n, d in entries])
    with pytest.raises(UserError, match="claims to hold more numbers than its size allows"):
        read_torch_file(path)


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"w": torch.zeros(1000)}, path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="checksum of .* is wrong"):
        read_torch_file(path)


def test_what_is_no_regular_file(tmp_path, monkeypatch, capsys, dataset_folder):
    """A device has no end, and a pipe nobody writes to would wait forever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for path in (Path("/dev/zero"), tmp_path / "pipe", tmp_path / "zero.safetensors"):
        for read in (read_torch_file, read_weights, file_digest):
            with pytest.raises(UserError, match="is a pipe or a device; name a file"):
                read(path)
        words = ["-d", "custom", "-c", dataset_folder, "-o", tmp_path / "out", "-w", path]
        assert "is a pipe or a device" in fail(monkeypatch, capsys, train_script, *words)
    with pytest.raises(UserError, match="is a folder; name a file"):
        read_torch_file(tmp_path)
    with pytest.raises(UserError, match="nowhere does not exist"):
        read_torch_file(tmp_path / "nowhere")


def test_files_larger_than_any_of_ours(tmp_path, monkeypatch):
    with (tmp_path / "x.pt").open("wb") as file:
        file.truncate(torch_files.MOST_BYTES + 1)  # takes no space
    with pytest.raises(UserError, match="x.pt has 4,294,967,297 bytes and is not opened"):
        read_torch_file(tmp_path / "x.pt")


def test_a_plain_pickle_is_no_torch_file(tmp_path):
    for protocol in range(6):
        (tmp_path / "x.pt").write_bytes(pickle.dumps([1, 2], protocol))
        with pytest.raises(UserError, match="is not a torch file, or damaged"):
            read_torch_file(tmp_path / "x.pt")


def test_numbers_are_counted_in_the_old_format(tmp_path):
    """The storages follow the pickles; their sizes are bounded by the file's."""
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(1000)}, buffer, _use_new_zipfile_serialization=False)
    data = buffer.getvalue().replace(b"M\xe8\x03", b"J\xff\xff\xff\x7f")
    assert data != buffer.getvalue()
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(UserError, match="claims to hold more numbers than its size allows"):
        read_torch_file(tmp_path / "x.pt")
