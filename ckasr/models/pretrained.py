"""Load published weights from a file, after its SHA-256 digest is checked."""

import hashlib
import io
import pickle
import re
from pathlib import Path

import torch
from torch import Tensor, nn


def load_pretrained(model: nn.Module, path: Path | str) -> None:
    """Load published weights into a model, in place.

    The CIFAR-10 weights of github.com/akamaster/pytorch_resnet_cifar10 can be loaded into the
    models with option A, such as ``create("resnet20_a", num_classes=10)``. These weights were
    trained on images that were normalised by the mean and standard deviation of ImageNet. Other
    state dicts with the parameter names of that repository, or of this package, can be loaded as
    well.

    Args:
        model: the model whose weights are replaced.
        path: a file whose name ends in the first digits of its SHA-256 digest, such as
            ``resnet20-12fca82f.th``.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if the digest of the file differs, or if the weights do not match the model. The
            model is then unchanged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights {path} are missing: give the path of a .th or .pt file")
    prefix = re.search(r"-([0-9a-f]{8,64})\.\w+$", path.name)
    if prefix is None:
        raise ValueError(
            f"weights {path}: the name must end in the first digits of the file's sha256, "
            "as in resnet20-12fca82f.th"
        )
    data = path.read_bytes()
    if not hashlib.sha256(data).hexdigest().startswith(prefix[1]):
        raise ValueError(f"weights {path} are altered or truncated: their sha256 is another")
    try:
        content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # Its message is very long.
        content = None
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"weights {path} hold no state dict: names and tensors, nothing else")
    given = {_renamed(key): value for key, value in state.items()}

    wanted = model.state_dict()
    # Files written before PyTorch 0.4.1 lack num_batches_tracked, which batch norms use only if
    # momentum is None.
    for name, value in wanted.items():
        if name.endswith("num_batches_tracked"):
            given.setdefault(name, value)
    problems = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} has no place" for name in given if name not in wanted]
    problems += [
        f"{name} is {tuple(given[name].shape)}, the model's is {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in given and given[name].shape != value.shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(
            f"weights {path} do not fit {type(model).__name__}: {'; '.join(problems[:3])}{more}"
        )
    model.load_state_dict(given)


def _renamed(key: str) -> str:
    return re.sub(r"^linear\.", "fc.", key.removeprefix("module."))
