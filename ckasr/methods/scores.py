"""Saliency scores: how much each weight matters. The weights of the highest scores are kept.

All functions are pure. They compute in float64 on copies of the weights, so that rounding does not
change the ranking, even if the model itself casts to a smaller type. They do not change the model
(weights, gradients, batch-norm statistics, mode) nor torch's global random generators. Inputs of a
floating-point type become float64; integers, such as tokens, stay as they are.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ckasr import devices
from ckasr.names import nearest
from ckasr.sparsity import paths, prunable
from ckasr.sparsity.layers import unwrapped

from .flow import InFloat64, LinearFlow

Scores = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]

CHUNK = 128
"""Largest number of samples that go through the network at once. A batch is cut into as few parts
as this allows, whose sizes differ by at most one. In eval mode the scores do not depend on it."""


def score(
    model: nn.Module,
    method: str,
    inputs: Tensor | None = None,
    targets: Tensor | None = None,
    **options: Any,
) -> Scores:
    """Return the saliency of every weight that ``prunable`` names, as float64 tensors by name.

    Args:
        model: the network to score.
        method: ``magnitude``, ``snip``, ``grasp`` or ``synflow``.
        inputs: batch of inputs, (N, ...); magnitude needs none, synflow reads only its shape.
        targets: batch of targets, such as (N,) int64; needed by snip and grasp.
        options: options of the function of that name below.

    Raises:
        LookupError: for an unknown method.
        ValueError: for a missing batch, a model without a conv or linear layer, scores that are not
            finite, and a model through which SynFlow has no linear flow.
    """
    functions: dict[str, Callable[..., Scores]] = {
        "magnitude": magnitude,
        "snip": snip,
        "grasp": grasp,
        "synflow": synflow,
    }
    if method not in functions:
        raise LookupError(f"no score called {method!r}{nearest(method, functions)}")
    needs = {"magnitude": (), "synflow": ("inputs",)}.get(method, ("inputs", "targets"))
    given = {"inputs": inputs, "targets": targets}
    for name in needs:
        if given[name] is None:
            raise ValueError(f"score {method!r} needs {name}: give a batch of inputs and targets")
    return functions[method](model, *(given[name] for name in needs), **options)


def magnitude(model: nn.Module) -> Scores:
    """Return |w| of every weight."""
    return {name: w.detach().double().abs() for name, w in _weights(model).items()}


@torch.inference_mode(False)
@torch.enable_grad()
def snip(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: Loss = nn.functional.cross_entropy,
    train_mode: bool = False,
    chunk: int = CHUNK,
) -> Scores:
    """Return |w dL/dw| for the mean loss L (Lee et al. 2019, equation 5, before normalising).

    Args:
        model: the network to score.
        inputs, targets: the batch to score with.
        loss: returns the mean loss from ``(outputs, targets)``.
        train_mode: whether batch norm uses the statistics of each chunk, not the running ones.
        chunk: largest number of samples per chunk; the sizes of chunks differ by at most one.
    """
    copy = _Copy(model, train_mode)
    gradients = [torch.zeros_like(w) for w in copy.weights.values()]
    with copy.pure():
        for part in _losses(copy, loss, inputs, targets, chunk):
            torch._foreach_add_(gradients, torch.autograd.grad(part, **copy.wanted))
    return copy.scores(g.mul(w).abs() for g, w in zip(gradients, copy.values, strict=True))


@torch.inference_mode(False)
@torch.enable_grad()
def grasp(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: Loss = nn.functional.cross_entropy,
    train_mode: bool = False,
    chunk: int = CHUNK,
    temperature: float = 200.0,
) -> Scores:
    """Return w (H g): how much the removal of a weight reduces the norm of the gradient.

    g and H are the gradient and the Hessian, over conv and linear weights, of the mean loss of
    outputs / temperature; so a score is half of w d|g|^2/dw. The score of the paper (Wang et al.
    2020, equation 8) is the negative of this, and the highest are removed.

    Args:
        model: the network to score.
        inputs, targets: the batch to score with. Every class must be in it.
        loss: returns the mean loss from ``(outputs, targets)``.
        train_mode: whether batch norm uses the statistics of each chunk (see ``snip``). H g is then
            the sum of the chunks' Hessians times the whole gradient, as in the authors' code.
        chunk: largest number of samples per chunk; the sizes of chunks differ by at most one.
        temperature: divisor of the outputs.

    Raises:
        ValueError: for targets in which a class is missing, because the scores would ignore it.
    """
    copy = _Copy(model, training=False)
    with copy.pure():
        _check_classes(copy, inputs, targets)
    copy = _Copy(model, train_mode)
    gradients = [torch.zeros_like(w) for w in copy.weights.values()]
    with copy.pure():
        for part in _losses(copy, loss, inputs, targets, chunk, temperature):
            torch._foreach_add_(gradients, torch.autograd.grad(part, **copy.wanted))
    products = [torch.zeros_like(w) for w in copy.weights.values()]
    with copy.pure():  # entered again, so that dropout repeats its random numbers
        for part in _losses(copy, loss, inputs, targets, chunk, temperature):
            of_chunk = torch.autograd.grad(part, create_graph=True, **copy.wanted)
            inner = part.new_zeros(())
            for g, h in zip(gradients, of_chunk, strict=True):
                inner = inner + (g * h).sum()
            torch._foreach_add_(products, torch.autograd.grad(inner, **copy.wanted))
    return copy.scores(h.mul(w) for h, w in zip(products, copy.values, strict=True))


@torch.inference_mode(False)
@torch.enable_grad()
def synflow(
    model: nn.Module, inputs: Tensor, *, masks: Mapping[str, Tensor] | None = None
) -> Scores:
    """Return |w| dR/d|w|, where R is the sum of the outputs for an input of ones.

    (Tanaka et al. 2020, equation 2.) Every parameter is replaced by its absolute value, and batch
    norms are in eval mode with mean zero, so R is a sum over paths. In a feed-forward network
    without biases the scores of each layer have the same total.

    R must be linear in the flow. ReLU and similar functions, which do not change positive values,
    sums, averages, maxima, batch norm and dropout in eval mode are linear. The upper limits of
    ReLU6, hardtanh and clamp are ignored, because the input could be small enough.

    Args:
        model: the network to score.
        inputs: a batch of which only the shape is read. For integers, such as tokens, every
            embedding is a vector of ones.
        masks: masks to apply before scoring.

    Raises:
        ValueError: with the name of the layer, for anything else: smooth or saturating activations,
            softmax, layer norm, attention, gates, differences of branches.
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
    """Return the first samples of each class: inputs (count * classes, ...) and their labels.

    Args:
        batches: batches to take the samples from.
        num_classes: number of classes.
        count: number of samples per class.
        class_major: whether all samples of a class follow each other. Otherwise the classes
            alternate, so that any part of the batch has all classes in equal numbers.

    Raises:
        ValueError: if a class has too few samples.
    """
    if count < 1:
        raise ValueError(f"samples={count} per class must be at least 1")
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
                f"class {label} has {count - left} of the {count} training samples that the score "
                "needs per class: lower option samples"
            )
    # The first dimension of the stack changes slowest.
    inputs = torch.stack([torch.cat(parts) for parts in picked], dim=0 if class_major else 1)
    device = inputs.device
    labels = torch.arange(num_classes, device=device).repeat(count)
    if class_major:
        labels = labels.view(count, num_classes).T.flatten()
    return inputs.flatten(0, 1), labels


class _Copy:
    """A float64 copy of a model's tensors, which the model's own code computes with.

    Args:
        model: the model.
        training: whether the model runs in training mode.
        linear: whether to raise ValueError, with the name of the layer, for an operation that is
            not linear in the input.
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
        # By identity, because wrappers inside the model are part of a parameter's name there.
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
        """Return a context in which compiled modules inside the model run uncompiled."""
        compiled = any(
            hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
            for module in self.model.modules()
        )
        return torch.compiler.set_stance("force_eager") if compiled else nullcontext()

    @contextmanager
    def pure(self) -> Iterator[None]:
        """Restore the random generators at the end, and use attention that has two derivatives."""
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
        """Arguments of torch.autograd.grad: all weights, with zeros for those that are not used."""
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
    copy: _Copy,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    chunk: int,
    temperature: float = 1.0,
) -> Iterator[Tensor]:
    """Yield the share of each chunk in the mean loss.

    The sizes of the chunks differ by at most one. A small last chunk would have batch statistics of
    few samples, which would change the scores.
    """
    if len(inputs) != len(targets) or not len(inputs):
        raise ValueError(f"{len(inputs)} inputs but {len(targets)} targets: give one for each")
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1: it is the number of samples at a time")
    parts = math.ceil(len(inputs) / chunk)
    for x, y in zip(inputs.tensor_split(parts), targets.tensor_split(parts), strict=True):
        value = loss(copy(x) / temperature, y.to(copy.device))
        yield value * (len(x) / len(inputs))


def _check_classes(copy: _Copy, inputs: Tensor, targets: Tensor) -> None:
    classes = copy(inputs[:1]).shape[1]
    present = set(targets.tolist())
    if absent := [label for label in range(classes) if label not in present]:
        raise ValueError(
            f"the batch for GraSP lacks class {absent[0]} ({len(present)} of {classes} classes are "
            "there): give samples of every class"
        )
