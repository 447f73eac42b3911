"""The maps that an evaluation has computed so far, kept in files until it is finished."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from efficientad.system.distributed import rank, wait_for_ranks
from efficientad.system.errors import UserError

_PATTERN = ".unfinished_maps.*"
_DIGEST_BYTES = 32


class MapSpool:
    """Maps S x S, float32, by the SHA-256 of the image file, of one detector.

    Each rank appends to a file of its own and reads all. A file is a digest of the detector, and for each map the
    image's digest, the map and a checksum. What a killed process left half-written is passed over.
    """

    def __init__(self, folder: Path, detector_digest: str, side: int, resume: bool) -> None:
        """
        Args:
            detector_digest: in hexadecimal digits, of all that the maps depend on beside the image.
            side: S.
            resume: take over what is there; else it is removed.

        Raises:
            UserError: what is there comes from another detector.
        """
        self._folder, self._side = folder, side
        self._file: BinaryIO | None = None
        self._record = _DIGEST_BYTES + 4 * side * side + 4
        self._places: dict[bytes, tuple[Path, int]] = {}
        detector = bytes.fromhex(detector_digest)
        for path in sorted(folder.glob(_PATTERN)) if resume else ():
            self._index(path, detector)
        if not resume:
            self.discard()
        wait_for_ranks()  # before any of them writes
        self._detector = detector

    def _index(self, path: Path, detector: bytes) -> None:
        with path.open("rb") as file:
            written = file.read(_DIGEST_BYTES)
            if len(written) < _DIGEST_BYTES:  # of a process that was stopped, or whose disk was full, at once
                return
            if written != detector:
                raise UserError(
                    f"{path} is of an evaluation with another model, --device or --precision; leave out --resume"
                )
            while len(digest := file.read(_DIGEST_BYTES)) == _DIGEST_BYTES:
                self._places[digest] = (path, file.tell())
                file.seek(self._record - _DIGEST_BYTES, 1)

    def __len__(self) -> int:
        """How many maps there are, the last ones perhaps half-written."""
        return len(self._places)

    def get(self, digest: str) -> np.ndarray | None:
        """The map of the image with this digest, where there is a whole one."""
        path, offset = self._places.get(bytes.fromhex(digest), (None, 0))
        if path is None:
            return None
        with path.open("rb") as file:
            file.seek(offset)
            values, checksum = file.read(4 * self._side * self._side), file.read(4)
        if zlib.crc32(values).to_bytes(4, "big") != checksum:
            return None
        return np.frombuffer(values, dtype=np.float32).reshape(self._side, self._side).copy()

    def add(self, digest: str, anomaly_map: np.ndarray) -> None:
        """Keep a map; it is in the file when this returns."""
        if self._file is None:
            number = len(list(self._folder.glob(_PATTERN)))
            path = self._folder / f"{_PATTERN[:-1]}{number}-{rank()}"  # a torn one is not continued
            self._file = path.open("xb")
            self._file.write(self._detector)
        values = np.ascontiguousarray(anomaly_map, dtype=np.float32).tobytes()
        try:
            self._file.write(bytes.fromhex(digest) + values + zlib.crc32(values).to_bytes(4, "big"))
            self._file.flush()
        except OSError as error:  # a full disk; the error itself names no file
            raise OSError(error.errno, error.strerror, self._file.name) from None

    def close(self) -> None:
        """This rank adds no more. Windows removes no open file."""
        if self._file is not None:
            self._file.close()

    def discard(self) -> None:
        """The first rank removes the files of all, which have closed theirs; they are not needed any more."""
        if rank() == 0:
            for path in self._folder.glob(_PATTERN):
                path.unlink()


def detector_digest(path: Path, description: str) -> str:
    """SHA-256, in hexadecimal digits, of what maps depend on beside the image.

    Args:
        path: of the detector: a file, or a folder of files.
        description: how they are computed.
    """
    if path.is_file():
        files = [path, path.with_suffix(".bin")] if path.suffix == ".xml" else [path]  # OpenVINO's weights
    elif (path / "model.pt").is_file():
        files = [path / "model.pt"]
    else:
        files = sorted(path.glob("*.pt*"))
    digest = hashlib.sha256(description.encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
