"""Checkpoints: written whole or not at all, and read without running code from them."""

import os
from pathlib import Path
from typing import Any

import torch


def save(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain values) so that a kill leaves the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    torch.save(state, part)
    os.replace(part, path)


def load(path: Path | None, device: torch.device) -> dict[str, Any] | None:
    """The saved state, or None where there is none. Raises ValueError for a damaged file."""
    if path is None or not path.exists():
        return None
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"checkpoint {path} cannot be read ({type(error).__name__}): delete it to start the "
            "run anew"
        ) from error
