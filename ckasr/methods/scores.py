"""Saliency scores of weights. The weights with the highest scores are kept.

All functions compute in float64 on copies of the weights, so that rounding does not change the
ranking, even if the model itself casts to a smaller type. They change neither the model (weights,
gradients, batch-norm statistics, mode) nor torch's global random generators. Floating-point inputs
are converted to float64; integer inputs, such as tokens, are not converted.
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
"""Default of the largest number of samples in one forward pass. A larger batch is split into as few
chunks as possible, whose sizes differ by at most one. In eval mode it does not affect scores."""


def score(
    model: nn.Module,
    method: str,
    inputs: Tensor | None = None,
    targets: Tensor | None = None,
    **options: Any,
) -> Scores:
    """Return the saliency scores of all prunable weights.

    Args:
        model: the network to score.
        method: ``magnitude``, ``snip``, ``grasp`` or ``synflow``.
        inputs: batch of inputs, (N, ...). ``magnitude`` does not need it; ``synflow`` uses only
            its shape and type.
        targets: batch of targets, for example (N,) int64. Only ``snip`` and ``grasp`` need it.
        options: further arguments of the function with the name of the method.

    Returns:
        A float64 tensor of the weight's shape for every weight of ``ckasr.sparsity.prunable``, by
        the name of the weight.

    Raises:
        LookupError: for an unknown method.
        ValueError: for a missing batch, a model without a convolution or linear layer, scores that
            are not finite, and a model that is not linear in the sense of ``synflow``.
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
    """Return |w| of every weight, as ``score`` does."""
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
    """Return |w dL/dw| of every weight, where L is the mean loss.

    This is equation 5 of Lee et al. 2019 (arXiv 1810.02340) without the normalisation, which does
    not change the ranking.

    Args:
        model: the network to score.
        inputs, targets: the batch to score with, (N, ...) and (N, ...).
        loss: function ``(outputs, targets) -> mean loss``.
        train_mode: whether batch norm uses the statistics of each chunk instead of the running
            statistics.
        chunk: largest number of samples per chunk; the sizes of chunks differ by at most one.

    Raises:
        ValueError: if the numbers of inputs and targets differ or are 0, if ``chunk`` is below 1,
            or if the scores are not finite.
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
    """Return w (H g) of every weight: the effect of its removal on the norm of the gradient.

    g and H are the gradient and the Hessian, with respect to all prunable weights, of the mean loss
    of outputs / temperature. A score is therefore half of w d|g|^2/dw. The score of the paper (Wang
    et al. 2020, arXiv 2002.07376, equation 8) has the opposite sign, and its highest scores are
    pruned.

    Args:
        model: the network to score.
        inputs, targets: the batch to score with, (N, ...) and (N,). It must contain every class.
        loss: function ``(outputs, targets) -> mean loss``.
        train_mode: whether batch norm uses the statistics of each chunk (see ``snip``). H g is then
            the sum of the products of each chunk's Hessian with the gradient of the whole batch, as
            in the authors' code.
        chunk: largest number of samples per chunk; the sizes of chunks differ by at most one.
        temperature: divisor of the outputs.

    Raises:
        ValueError: if the targets lack a class, which the scores would ignore, and as ``snip``.
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
    with copy.pure():  # a second context, so that dropout uses the same random numbers again
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
    """Return |w| dR/d|w| of every weight, where R is the sum of the outputs for an input of ones.

    This is equation 2 of Tanaka et al. 2020 (arXiv 2006.05467). Every parameter is replaced by its
    absolute value, and batch norms are in eval mode with mean zero, so that R is a sum over paths.
    In a feed-forward network without biases, the sum of the scores is the same for every layer.

    The network must be linear for positive values. This holds for ReLU and similar functions that
    do not change positive values, and for sums, averages, maxima, batch norm and dropout in eval
    mode. The upper limits of ReLU6, hardtanh and clamp are ignored, because they have no effect on
    a sufficiently small input.

    Args:
        model: the network to score.
        inputs: a batch, (N, ...), of which only the shape and type are used. For integers, such as
            tokens, every embedding is replaced by a vector of ones.
        masks: masks to apply before scoring.

    Raises:
        ValueError: for any other operation: smooth or saturating activations, softmax, layer norm,
            attention, gates, differences of branches. The message contains the name of the layer.
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
            # Batch norm would subtract the mean, and ReLU would then set some paths to zero.
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
        class_major: whether the samples are sorted by class. Otherwise the classes alternate, so
            that all parts of the batch contain the classes in about equal numbers.

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
    """A float64 copy of a model's tensors. The forward pass of the model runs on this copy.

    Args:
        model: the model.
        training: whether the model runs in training mode.
        linear: whether to raise ValueError for an operation that is not linear (see ``synflow``).
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
        # By identity, because ``named_parameters`` includes the names of wrappers inside the model.
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
        """Context that restores the random generators, and uses twice differentiable attention."""
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
        """Arguments of torch.autograd.grad: all weights, with zeros for unused weights."""
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
    """Yield the contribution of each chunk to the mean loss.

    The sizes of the chunks differ by at most one, because the batch statistics of a small last
    chunk would change the scores.
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
