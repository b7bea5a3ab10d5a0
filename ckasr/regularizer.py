"""CKASR: the CKA-SR term of arXiv 2307.07389 for anybody's training loop.

    reg = CKASR(model, beta=1e-4)
    loss = criterion(model(x), y) + reg()

Forward hooks copy the few samples they need while the forward passes; ``reg()`` turns them into the
term. Nothing else of the loop changes, and ``reg.remove()`` leaves the model as it was.
"""

import difflib
import math
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ckasr.cka import MIN_UNBIASED_SAMPLES, Pairs, Variant, cka_sr_loss

Predicate = Callable[[str, nn.Module], bool]
_INPUT = "<input>"


class CKASR:
    """Adds ``beta * CKA-SR`` of the chosen layers to a training loss.

    model: any module whose tapped layers return a tensor ``(n, ...)`` (or a tuple that starts with
        one). Hooks act in train mode only; in eval mode the model is untouched and ``reg()`` is 0.
    beta: weight of the term; the paper's 1e-4 on CIFAR, 1e-5 on ImageNet. A float, or a 0-dim
        tensor to change in place.
    variant: ``"official"``, ``"paper"`` or ``"aug"``; see :func:`ckasr.cka_sr_loss`.
    samples: the first so many samples of the batch, as the authors' code; None: the whole batch.
    every: on one step in so many, beginning with the first; the others return 0.
    pairs: ``"within"`` a stage, ``"all"``, ``"adjacent"`` or with the ``"input"``; None: as the
        variant has it.
    stages: layer names grouped by stage, ``[["layer1.0", "layer1.1"], ["layer2.0"]]``. By default
        the containers of equal residual blocks are found (:func:`find_stages`).
    layers: instead of stages, a list of layer names or a predicate ``(name, module) -> bool``; the
        layers of one resolution (equal shape beyond the channels) make a stage.
    rescale: multiply beta by ``every``, so that skipping steps leaves the mean strength unchanged.
        The authors do not.

    One call of ``reg()`` in train mode is one step. It raises RuntimeError if a tapped layer did
    not run since the last step, ValueError if it saw fewer than 4 samples. Layers that run twice
    count with their last run. It keeps no activation and no graph after the call.
    """

    def __init__(
        self,
        model: nn.Module,
        beta: float | Tensor = 1e-4,
        *,
        variant: Variant = "official",
        samples: int | None = 8,
        every: int = 5,
        pairs: Pairs | None = None,
        stages: Sequence[Sequence[str]] | None = None,
        layers: Sequence[str] | Predicate | None = None,
        rescale: bool = False,
    ) -> None:
        if not isinstance(beta, Tensor) and not (math.isfinite(beta) and beta >= 0):
            raise ValueError(f"beta must be finite and not negative, got {beta}")
        if samples is not None and samples < MIN_UNBIASED_SAMPLES:
            raise ValueError(
                f"samples must be at least {MIN_UNBIASED_SAMPLES}, or None for the whole batch; "
                f"got {samples}"
            )
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        if stages is not None and layers is not None:
            raise ValueError("give stages or layers, not both")
        if stages is not None and any(isinstance(stage, str) for stage in stages):
            raise ValueError(
                "stages is a list of lists of layer names, one list a stage; for one flat list of "
                "names use layers="
            )
        self.model = model
        self.beta = beta
        self.variant: Variant = variant
        self.samples = samples
        self.every = every
        self.pairs = pairs
        self.rescale = rescale
        self.term: Tensor | None = None
        """Value of the term before beta at the last step, detached; None if it was skipped."""
        self._by_resolution = layers is not None
        if layers is not None:
            self.stages = [_select(model, layers)]
        else:
            self.stages = [list(s) for s in stages] if stages is not None else find_stages(model)
        modules = {name: _module(model, name) for stage in self.stages for name in stage}
        if not modules:
            raise ValueError("CKA-SR has no layer to compare; name them with stages= or layers=")
        self._features: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._step = 0
        # Read by the hooks instead of the step itself: under torch.compile a counter would be a
        # new graph at every step, a flag is two graphs in all.
        self._due = True
        _nobody_else()  # measured now, not in the middle of a backward
        if pairs == "input":
            self._handles.append(model.register_forward_pre_hook(self._tap_input))
        for name, module in modules.items():
            self._handles.append(module.register_forward_hook(self._tap(name)))

    def __call__(self) -> Tensor:
        """The term times beta at this step: a scalar to add to the loss; 0 on a skipped step."""
        value = self.compute()
        if self.model.training:
            self.advance()
        return value

    def compute(self) -> Tensor:
        """The same without counting the step, for loops that count for themselves: a step that is
        replayed from a CUDA graph runs no Python, and is counted by ``advance()`` alone.
        """
        if not self._handles:
            raise RuntimeError("this CKASR was removed from its model; make a new one")
        features, self._features = self._features, {}
        self.term = None
        if not (self.model.training and self._due):
            return self._zero()
        term = cka_sr_loss(self._grouped(features), self.variant, pairs=self.pairs)
        self.term = term.detach()
        return term * (self.beta * self.every if self.rescale else self.beta)

    def advance(self) -> None:
        """Count one step as done."""
        self._step += 1
        self._due = self._step % self.every == 0

    def reset(self) -> None:
        """Count steps anew, so that the next one has the term: at the start of an epoch, say."""
        self._step = 0
        self._due = True
        self._features = {}

    def remove(self) -> None:
        """Take every hook off the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._features = {}

    def __enter__(self) -> "CKASR":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    @property
    def due(self) -> bool:
        """Whether the coming step has the term."""
        return self._due

    def _zero(self) -> Tensor:
        parameter = next(self.model.parameters(), None)
        return torch.zeros((), device=None if parameter is None else parameter.device)

    def _tap(self, name: str) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            if not (module.training and self._due):
                return None
            x = output[0] if isinstance(output, tuple | list) else output
            if not isinstance(x, Tensor):
                raise ValueError(
                    f"layer {name!r} returns {type(x).__name__}, not a tensor; tap another layer"
                )
            if self.samples is None or len(x) <= self.samples:
                self._features[name] = x
                return None
            passed, self._features[name] = _FirstSamples.apply(x, self.samples)
            if isinstance(output, tuple | list):
                return (passed, *output[1:])
            return passed

        return hook

    def _tap_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if self._due and module.training:
            self._features[_INPUT] = args[0][: self.samples]

    def _grouped(self, features: dict[str, Tensor]) -> list[list[Tensor]]:
        names = [name for stage in self.stages for name in stage]
        if missing := [name for name in names if name not in features]:
            raise RuntimeError(
                f"no forward pass of {', '.join(missing)} since the last step: call the model in "
                "train mode before reg(), and tap only layers that every forward pass runs"
            )
        for name in names:
            if len(features[name]) < MIN_UNBIASED_SAMPLES:
                raise ValueError(
                    f"layer {name!r} saw {len(features[name])} samples, CKA-SR needs at least "
                    f"{MIN_UNBIASED_SAMPLES}: drop the last, smaller batch (drop_last=True)"
                )
        groups = [[features[name] for name in stage] for stage in self.stages]
        if self._by_resolution:
            by_shape: dict[tuple[int, ...], list[Tensor]] = {}
            for feature in groups[0]:
                by_shape.setdefault(tuple(feature.shape[2:]), []).append(feature)
            groups = list(by_shape.values())
        if self.pairs == "input":
            groups.insert(0, [features[_INPUT]])
        return groups


class _FirstSamples(torch.autograd.Function):
    """Passes ``x`` on and copies out its first samples.

    Slicing would do the same, but its backward writes the few rows into zeros of the full size and
    adds those to the gradient; here they are added to the rows they belong to.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, samples: int) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.shape = x.shape
        # detach, not view_as: the next layer may work in place, which views of a Function forbid.
        return x.detach(), x[:samples].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, few: Tensor | None) -> tuple[Tensor | None, None]:
        if few is None:
            return grad, None
        if grad is None:
            grad = few.new_zeros(ctx.shape)
        elif not (_plain(grad) and _holders(grad) == _nobody_else()):
            grad = grad.clone()
        grad[: len(few)] += few
        return grad, None


# Autograd may hand one gradient to several branches, and a hook may keep it. Where nobody does, the
# copy above is spared (it is most of what the term costs on a CPU). Autograd itself decides by
# these counts whether to add in place, but shows them by private names: without those, we copy.


def _plain(grad: Tensor) -> bool:
    """Whether its counts tell all: not under a compiler or a double backward, not expanded."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or type(grad) is not Tensor:
        return False
    return grad.untyped_storage().nbytes() == grad.numel() * grad.element_size()


def _holders(grad: Tensor) -> tuple[int, int, int] | None:
    """Reference counts of a gradient: of its Python object, its tensor and its storage."""
    try:
        storage = torch._C._storage_Use_Count(grad.untyped_storage()._cdata)
        return sys.getrefcount(grad), grad._use_count(), storage
    except AttributeError:
        return None


@lru_cache(maxsize=1)
def _nobody_else() -> tuple[int, int, int] | None:
    """The counts of a gradient that only a backward holds: measured, as versions differ in them."""
    found = []

    class Probe(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.detach()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> None:
            found.append(_holders(grad))

    with torch.enable_grad():
        (2 * Probe.apply(torch.zeros(2, requires_grad=True))).sum().backward()
    return found[0]


def find_stages(model: nn.Module) -> list[list[str]]:
    """Names of the residual blocks of a model, grouped by stage.

    A stage is a Sequential or ModuleList of composite modules of one class: ``layer1`` to
    ``layer4`` of torchvision's ResNets, the encoder layers of a transformer. Raises ValueError if
    there is none.
    """
    stages = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential | nn.ModuleList) and len(module):
            children = list(module.named_children())
            composite = all(next(child.children(), None) is not None for _, child in children)
            if composite and len({type(child) for _, child in children}) == 1:
                stages.append([f"{name}.{child}" if name else child for child, _ in children])
    if not stages:
        raise ValueError(
            f"no stages of residual blocks found in {type(model).__name__}; "
            "name the layers with stages=[[...], ...] or layers=[...]"
        )
    return stages


def _select(model: nn.Module, layers: Sequence[str] | Predicate) -> list[str]:
    if callable(layers):
        return [name for name, module in model.named_modules() if name and layers(name, module)]
    return list(layers)


def _module(model: nn.Module, name: str) -> nn.Module:
    names = dict(model.named_modules())
    if name not in names or not name:
        nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
        hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
        raise LookupError(f"{type(model).__name__} has no layer {name!r}{hint}")
    return names[name]
