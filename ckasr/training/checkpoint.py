"""Checkpoints. A file is written atomically, and reading it cannot run code."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ckasr.storage import replacing


def save(path: Path, state: dict[str, Any], owner: str = "") -> None:
    """Write a state to a file. If the process is killed while writing, the old file is unchanged.

    Args:
        path: file to write.
        state: tensors and plain values.
        owner: id of the run to which the state belongs.

    Raises:
        OSError: if the file cannot be written, for example because the disk is full.
    """
    with replacing(path) as part:
        try:
            torch.save({**state, "owner": owner}, part)
        except RuntimeError as error:  # torch.save raises this error if the disk is full
            raise OSError(f"{str(error).splitlines()[0]}; is the disk full?") from error


def load(path: Path | None, device: torch.device, owner: str = "") -> dict[str, Any] | None:
    """Read a state from a file; None if the path is None or does not exist.

    Args:
        path: file to read.
        device: device of the tensors.
        owner: id of the run to which the state must belong.

    Raises:
        ValueError: for a damaged file, and for the file of another run.
    """
    if path is None or not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): delete it to start the "
            "run from the beginning"
        ) from error
    if not isinstance(state, dict) or state.get("owner") != owner:
        found = state.get("owner") if isinstance(state, dict) else None
        of = f"of run {found}" if found else "without the id of a run"
        raise ValueError(
            f"checkpoint {path} is {of}, not of run {owner}: delete it to start the run from the "
            "beginning"
        )
    return state


@contextmanager
def restoring(path: Path | None) -> Iterator[None]:
    """Context manager that raises a ValueError if a state cannot be restored in its block.

    Args:
        path: file of the state, for the error message.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"checkpoint {path} does not fit this run ({type(error).__name__}): another version of "
            "ckasr has written it, or it was altered; delete it to start the run from the beginning"
        ) from error
