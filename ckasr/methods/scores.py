"""Saliency scores: how much each weight matters, higher = kept.

Pure functions. They compute in float64 on copies of the weights, so that the ranking owes nothing
to rounding, also where the model itself casts to less. They leave the model as it was (weights,
gradients, batch-norm statistics, mode), and torch's global random generators too. Inputs of a
floating-point type become float64; integers, such as tokens, stay as they are.
"""

import difflib
import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ckasr import devices
from ckasr.sparsity import paths, prunable
from ckasr.sparsity.masks import unwrapped

from .flow import InFloat64, LinearFlow

Scores = dict[str, Tensor]

CHUNK = 128
"""The most images that go through the network at once. A batch is cut into as few parts as that
allows, equal in size to within one image. In eval mode the scores do not depend on it."""


def score(
    model: nn.Module,
    method: str,
    inputs: Tensor | None = None,
    targets: Tensor | None = None,
    **options: Any,
) -> Scores:
    """Saliency of every weight that `prunable` names: name -> float64 tensor of its shape.

    method: ``magnitude``, ``snip``, ``grasp`` or ``synflow``; options are those of the function of
    that name below. inputs (N, C, H, W), targets (N,) int64: magnitude needs neither, synflow only
    the inputs' shape. Raises LookupError for an unknown method, ValueError for a missing batch, a
    model without a conv or linear layer, scores that are not finite, and a model through which
    SynFlow has no linear flow.
    """
    functions = {"magnitude": magnitude, "snip": snip, "grasp": grasp, "synflow": synflow}
    needs = {"magnitude": (), "synflow": ("inputs",)}.get(method, ("inputs", "targets"))
    if method not in functions:
        near = difflib.get_close_matches(method, functions, n=1, cutoff=0.3) or list(functions)
        raise LookupError(f"no score called {method!r}; nearest: {', '.join(near)}")
    given = {"inputs": inputs, "targets": targets}
    for name in needs:
        if given[name] is None:
            raise ValueError(f"score {method!r} needs {name}: give a batch of images and labels")
    return functions[method](model, *(given[name] for name in needs), **options)


def magnitude(model: nn.Module) -> Scores:
    """|w|."""
    return {name: w.detach().double().abs() for name, w in _weights(model).items()}


@torch.inference_mode(False)
@torch.enable_grad()
def snip(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    train_mode: bool = False,
    chunk: int = CHUNK,
) -> Scores:
    """|w dL/dw| of the mean cross-entropy L (Lee et al. 2019, equation 5, before normalising).

    train_mode: batch norm by the statistics of each chunk instead of the running ones; a chunk has
    at most ``chunk`` images, and all are equal in size to within one.
    """
    copy = _Copy(model, train_mode)
    gradients = [torch.zeros_like(w) for w in copy.weights.values()]
    with copy.pure():
        for loss in _losses(copy, inputs, targets, chunk):
            torch._foreach_add_(gradients, torch.autograd.grad(loss, **copy.wanted))
    return copy.scores(g.mul(w).abs() for g, w in zip(gradients, copy.values, strict=True))


@torch.inference_mode(False)
@torch.enable_grad()
def grasp(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    train_mode: bool = False,
    chunk: int = CHUNK,
    temperature: float = 200.0,
) -> Scores:
    """w (H g): what removing a weight takes from the gradient's norm (Wang et al. 2020, eq. 8).

    g and H are gradient and Hessian, over conv and linear weights, of the mean cross-entropy of
    logits / temperature; so a score is half of w d|g|^2/dw. The paper's score is the negative, and
    removes the highest. train_mode: batch norm by the statistics of each chunk (see ``snip``); H g
    is then the sum of the chunks' Hessians times the whole gradient, as in the authors' code.
    Raises ValueError for targets that lack a class: the ranking would be blind to it.
    """
    copy = _Copy(model, training=False)
    with copy.pure():
        _check_classes(copy, inputs, targets)
    copy = _Copy(model, train_mode)
    gradients = [torch.zeros_like(w) for w in copy.weights.values()]
    with copy.pure():
        for loss in _losses(copy, inputs, targets, chunk, temperature):
            torch._foreach_add_(gradients, torch.autograd.grad(loss, **copy.wanted))
    products = [torch.zeros_like(w) for w in copy.weights.values()]
    with copy.pure():  # anew, so that dropout draws the same again
        for loss in _losses(copy, inputs, targets, chunk, temperature):
            of_chunk = torch.autograd.grad(loss, create_graph=True, **copy.wanted)
            inner = sum((g * h).sum() for g, h in zip(gradients, of_chunk, strict=True))
            torch._foreach_add_(products, torch.autograd.grad(inner, **copy.wanted))
    return copy.scores(h.mul(w) for h, w in zip(products, copy.values, strict=True))


@torch.inference_mode(False)
@torch.enable_grad()
def synflow(
    model: nn.Module, inputs: Tensor, *, masks: Mapping[str, Tensor] | None = None
) -> Scores:
    """|w| dR/d|w|, R the sum of outputs for an image of ones (Tanaka et al. 2020, equation 2).

    Every parameter enters R by its absolute value and batch norms in eval mode with mean zero, so
    R sums over paths; only the inputs' shape is read (of tokens, every embedding is one of ones).
    masks: score what they leave. In a feed-forward network without biases all layers have the same
    total.

    R must be linear in the flow: ReLU and its like, which leave positive values as they are, sums,
    averages, maxima, batch norms and dropout in eval mode. The upper limit of ReLU6, hardtanh and
    clamp is left out, as the image of ones could be as small. Raises ValueError, with the name of
    the layer, for anything else: smooth or saturating activations, softmax, layer norm, attention,
    gates, differences of branches.
    """
    copy = _Copy(model, training=False, linear=True)
    with torch.no_grad():
        for parameter in copy.parameters.values():
            parameter.abs_()
        for name, weight in copy.weights.items():
            if masks is not None and name in masks:
                weight.masked_fill_(~masks[name].to(weight.device), 0)
        if not inputs.is_floating_point():
            copy.fill_embeddings()
        for name, buffer in copy.buffers.items():
            # A mean would be subtracted, and what ReLU then cuts off is no path.
            if name.endswith("running_mean"):
                buffer.zero_()
    flow = torch.ones_like if inputs.is_floating_point() else torch.zeros_like
    with copy.pure():
        output = copy(flow(inputs[:1])).sum()
        gradients = torch.autograd.grad(output, **copy.wanted)
    return copy.scores(g.mul(w) for g, w in zip(gradients, copy.values, strict=True))


def per_class(
    batches: Iterator[tuple[Tensor, Tensor]],
    num_classes: int,
    count: int,
    *,
    class_major: bool = False,
) -> tuple[Tensor, Tensor]:
    """The first ``count`` images of each class: (count * classes, C, H, W) and their labels.

    One of each class in turn, so that any part of the batch holds all classes alike; class_major:
    all of the first class, then all of the next. Raises ValueError where a class has too few.
    """
    if count < 1:
        raise ValueError(f"samples={count} a class must be at least 1")
    picked: list[list[Tensor]] = [[] for _ in range(num_classes)]
    missing = [count] * num_classes
    for x, y in batches:
        for label in range(num_classes):
            if missing[label]:
                found = x[y == label][: missing[label]]
                picked[label].append(found)
                missing[label] -= len(found)
        if not any(missing):
            break
    for label, left in enumerate(missing):
        if left:
            raise ValueError(
                f"class {label} has {count - left} of the {count} training images that the score "
                "needs of each: lower option samples"
            )
    # Dimension 0 of the stack is what runs slowest.
    images = torch.stack([torch.cat(parts) for parts in picked], dim=0 if class_major else 1)
    device = images.device
    labels = torch.arange(num_classes, device=device).repeat(count)
    if class_major:
        labels = labels.view(count, num_classes).T.flatten()
    return images.flatten(0, 1), labels


class _Copy:
    """A float64 copy of a model's tensors, run through the model's own code.

    linear: refuse, by layer name, whatever makes the output no linear function of the input.
    """

    def __init__(self, model: nn.Module, training: bool, linear: bool = False) -> None:
        self.model, self.training = unwrapped(model), training
        self.layers = paths.LayerNames(self.model)
        self.mode = LinearFlow(self.layers) if linear else InFloat64()
        self.parameters = {
            name: p.detach().to(torch.float64, copy=True)
            for name, p in self.model.named_parameters()
        }
        self.buffers = {
            name: b.detach().to(torch.float64 if b.is_floating_point() else b.dtype, copy=True)
            for name, b in self.model.named_buffers()
        }
        # By identity: wrappers within the model are part of a parameter's name, but not of ours.
        own = {id(p): self.parameters[name] for name, p in self.model.named_parameters()}
        self.weights = {name: own[id(w)].requires_grad_() for name, w in _weights(model).items()}
        self.device = next(iter(self.weights.values())).device

    def __call__(self, x: Tensor) -> Tensor:
        modes = {module: module.training for module in self.model.modules()}
        self.model.train(self.training)
        try:
            dtype = torch.float64 if x.is_floating_point() else x.dtype
            x = x.to(self.device, dtype, copy=True)
            with self._as_written(), self.layers, self.mode:
                x = self.mode.begin(x)
                return functional_call(self.model, self.parameters | self.buffers, (x,))
        finally:
            for module, training in modes.items():
                module.training = training

    def _as_written(self) -> AbstractContextManager:
        """Without the graphs that torch.compile made of modules within the model."""
        compiled = any(
            hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
            for module in self.model.modules()
        )
        return torch.compiler.set_stance("force_eager") if compiled else nullcontext()

    @contextmanager
    def pure(self) -> Iterator[None]:
        """Random generators as before in the end; attention that can be differentiated twice."""
        generators = devices.of(self.device).generators()
        with torch.random.fork_rng(generators), sdpa_kernel(SDPBackend.MATH):
            yield

    def fill_embeddings(self) -> None:
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Embedding):
                table = self.parameters[f"{name}.weight" if name else "weight"]
                if not table.requires_grad:
                    table.fill_(1)

    @property
    def wanted(self) -> dict[str, Any]:
        """Arguments of torch.autograd.grad: by all weights, zeros for one that is not used."""
        return {"inputs": list(self.weights.values()), "materialize_grads": True}

    @property
    def values(self) -> list[Tensor]:
        return [w.detach() for w in self.weights.values()]

    def scores(self, values: Iterator[Tensor]) -> Scores:
        scores = {name: v.detach() for name, v in zip(self.weights, values, strict=True)}
        for name, value in scores.items():
            if not torch.isfinite(value).all():
                raise ValueError(
                    f"scores of layer {name!r} are not finite: its weights or activations overflow"
                )
        return scores


def _weights(model: nn.Module) -> dict[str, nn.Parameter]:
    weights = prunable(model)
    if not weights:
        raise ValueError(f"{type(model).__name__} has no conv or linear weight to score")
    return weights


def _losses(
    copy: _Copy, inputs: Tensor, targets: Tensor, chunk: int, temperature: float = 1.0
) -> Iterator[Tensor]:
    """Each chunk's share of the mean cross-entropy, for at most ``chunk`` images at a time.

    The chunks are equal in size to within one image: batch statistics of a small rest would be
    those of few images, and would change the scores.
    """
    if len(inputs) != len(targets) or not len(inputs):
        raise ValueError(f"{len(inputs)} images but {len(targets)} labels: give one for each")
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1: the most images scored at a time")
    parts = math.ceil(len(inputs) / chunk)
    for x, y in zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True):
        loss = nn.functional.cross_entropy(copy(x) / temperature, y.to(copy.device))
        yield loss * (len(x) / len(inputs))


def _check_classes(copy: _Copy, inputs: Tensor, targets: Tensor) -> None:
    classes = copy(inputs[:1]).shape[1]
    present = set(targets.tolist())
    if absent := [label for label in range(classes) if label not in present]:
        raise ValueError(
            f"the batch for GraSP lacks class {absent[0]} ({len(present)} of {classes} classes are "
            "there): give images of every class"
        )
