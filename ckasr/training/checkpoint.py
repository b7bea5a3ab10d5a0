"""Checkpoints: written whole or not at all, and read without running code from them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ckasr.storage import replacing


def save(path: Path, state: dict[str, Any], owner: str = "") -> None:
    """Write ``state`` (tensors and plain values) so that a kill leaves the old file or the new.

    owner: id of the run that the state belongs to. Raises OSError where the file cannot be written,
    as on a full disk.
    """
    with replacing(path) as part:
        try:
            torch.save({**state, "owner": owner}, part)
        except RuntimeError as error:  # torch's writer reports a full disk as such
            raise OSError(f"{str(error).splitlines()[0]}; is the disk full?") from error


def load(path: Path | None, device: torch.device, owner: str = "") -> dict[str, Any] | None:
    """The state that ``owner`` saved, or None where there is none.

    Raises ValueError for a damaged file and for one of another run.
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
    """Turn what a checkpoint of unfit contents raises in the block into one line of ValueError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"checkpoint {path} does not fit this run ({type(error).__name__}): it is of another "
            "version of ckasr, or altered; delete it to start the run anew"
        ) from error
