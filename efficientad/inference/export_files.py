"""The files of an export: complete, or not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from efficientad.system.errors import UserError
from efficientad.system.runs import lock_output, unfinished_folder


@contextmanager
def unfinished_file(output: Path, suffix: str, overwrite: bool) -> Iterator[Path]:
    """A path to write an export to; it and the files beside it appear at `output` if the block raises nothing.

    Folders beside it do not.

    Raises:
        UserError: the file cannot be written, is there and may not be replaced, or another run is writing it.
    """
    if output.suffix != suffix:
        raise UserError(f"--output {output}: its name must end in {suffix}")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
    with lock_output(output, "--output"):
        for file in (output, output.with_suffix(".bin")) if output.suffix == ".xml" else (output,):
            if (file.exists() or file.is_symlink()) and not overwrite:
                raise UserError(f"{file} is there already; add --overwrite, or choose another --output")
        with unfinished_folder(output) as folder:
            yield folder / output.name
            files = [file for file in folder.iterdir() if file.is_file()]
            for file in sorted(files, key=lambda file: file.suffix == output.suffix):
                file.replace(output.with_name(file.name))  # an .xml appears after its .bin
