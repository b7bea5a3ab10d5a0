"""Checkpoints: written atomically, and read without running code from them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ckasr.storage import replacing


def save(path: Path, state: dict[str, Any], owner: str = "") -> None:
    """Write a state. If the process is killed meanwhile, the old file is left as it was.

    Args:
        path: file to write.
        state: tensors and plain values.
        owner: id of the run that the state belongs to.

    Raises:
        OSError: if the file cannot be written, for example on a full disk.
    """
    with replacing(path) as part:
        try:
            torch.save({**state, "owner": owner}, part)
        except RuntimeError as error:  # torch's writer reports a full disk as such
            raise OSError(f"{str(error).splitlines()[0]}; is the disk full?") from error


def load(path: Path | None, device: torch.device, owner: str = "") -> dict[str, Any] | None:
    """Return the state that ``owner`` saved, or None if there is no file.

    Raises ValueError for a damaged file and for the file of another run.
    """
    if path is None or not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): delete it to start the "
            "run anew"
        ) from error
    if not isinstance(state, dict) or state.get("owner") != owner:
        found = state.get("owner") if isinstance(state, dict) else None
        of = f"of run {found}" if found else "of no run that is named in it"
        raise ValueError(
            f"checkpoint {path} is {of}, not of run {owner}: delete it to start the run anew"
        )
    return state


@contextmanager
def restoring(path: Path | None) -> Iterator[None]:
    """Raise one ValueError for whatever a checkpoint that does not fit raises in the block."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"checkpoint {path} does not fit this run ({type(error).__name__}): it is of another "
            "version of ckasr, or altered; delete it to start the run anew"
        ) from error
