"""CKASR: the CKA-SR term of arXiv 2307.07389 as a plug-in for any PyTorch training loop.

    reg = CKASR(model, beta=1e-4)
    loss = criterion(model(x), y) + reg()

Forward hooks copy the few samples they need during the forward pass; ``reg()`` computes the term
from them. The rest of the loop stays as it is, and ``reg.remove()`` takes the hooks off again.
"""

import difflib
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from types import TracebackType
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from ckasr.cka import MIN_UNBIASED_SAMPLES, Pairs, Variant, cka_sr_loss
from ckasr.stages import find_stages

__all__ = ["CKASR", "find_stages"]

Predicate = Callable[[str, nn.Module], bool]
_INPUT = "<input>"
_SEQUENCE_LAYERS = (
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.Transformer,
)


class CKASR:
    """Adds ``beta * CKA-SR`` of the chosen layers to a training loss.

    The feature of a layer is its output as the layer returned it, before any in-place operation
    that follows. A layer may return a tensor ``(n, ...)``, or a tuple, list or mapping whose first
    entry is one. Features are read in the model's train mode only, whatever the mode of the single
    layers; in eval mode the model is untouched and ``reg()`` is 0.

    Args:
        model: the module to train. Call it as usual, alone or inside DistributedDataParallel or
            torch.compile (layers go by their names in the module that was compiled). Deep copies of
            it (averaged models, mean teachers), pickled copies, and passes with other parameters
            (torch.func.functional_call) do not feed the term.
        beta: weight of the term; the paper has 1e-4 on CIFAR, 1e-5 on ImageNet. A number, or a
            0-dim tensor, which may be changed in place.
        variant: ``"official"``, ``"paper"`` or ``"aug"``; see :func:`ckasr.cka_sr_loss`.
        samples: how many samples of the batch are used, the first ones, as in the authors' code;
            None: the whole batch.
        every: the term is computed on one step in ``every``, beginning with the first; on the
            others ``reg()`` returns 0.
        pairs: which layers are compared: ``"within"`` a stage, ``"all"``, ``"adjacent"``, or each
            with the model's ``"input"``; None: the default of the variant.
        stages: layer names grouped by stage, ``[["layer1.0", "layer1.1"], ["layer2.0", ...]]``. By
            default the repeated blocks are found (:func:`find_stages`).
        layers: instead of stages, a list of layer names or a predicate ``(name, module) -> bool``;
            the layers of one resolution (equal shape beyond the channels) make a stage.
        rescale: multiply beta by ``every``, so that skipping steps leaves the mean strength
            unchanged. The authors do not.
        batch_dim: the dimension of the layers' outputs, and of the model's input, that counts
            samples. By default 0, and 1 for layers of ``torch.nn`` with ``batch_first=False``.
            Where this is unclear (other layers of a model that holds such layers, or outputs with
            another number of rows than the model's input) an error asks for it.

    Raises:
        ValueError: for bad arguments, when the object is made; at a step, for fewer than 4 samples,
            for stages that were found but mix resolutions, and where the sample dimension is
            unclear.
        LookupError: for an unknown layer.
        RuntimeError: at a step, if a layer did not run since the last one, or ran without
            gradients (``torch.no_grad``, checkpointing with ``use_reentrant=True``).

    One call of ``reg()`` in train mode counts as one step. It uses the last forward pass of the
    model; layers that run twice in it count with their last run. Neither activations nor the graph
    are kept after the call. The hooks hold the CKASR object weakly: they do nothing once it is
    gone.
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
        batch_dim: int | None = None,
    ) -> None:
        _check_beta(beta)
        _check_choice("variant", variant, get_args(Variant))
        if pairs is not None:
            _check_choice("pairs", pairs, get_args(Pairs))
        _check_count("every", every, 1)
        if samples is not None:
            _check_count("samples", samples, MIN_UNBIASED_SAMPLES, ", or None for the whole batch")
        if batch_dim is not None:
            _check_count("batch_dim", batch_dim, 0)
        # The hooks are compiled with the model they are on, so they may not refer to its wrapper.
        model = getattr(model, "_orig_mod", model)
        self.model = model
        self.beta = beta
        self.variant: Variant = variant
        self.samples = samples
        self.every = every
        self.pairs = pairs
        self.rescale = rescale
        self.batch_dim = batch_dim
        self.term: Tensor | None = None
        """Value of the term before beta at the last step, detached; None if it was skipped."""
        self._found = stages is None and layers is None
        self._by_resolution = layers is not None
        self.stages = _stages(model, stages, layers)
        self._modules = _modules(model, self.stages)
        _check_pairs(self.stages, pairs or ("all" if variant == "aug" else "within"))
        self._sequence_first = next(
            (name for name, m in model.named_modules() if _own_batch_dim(m) == 1), None
        )
        self._features: dict[str, Tensor] = {}
        self._batch: int | None = None
        # Layers run outside the model's own forward pass as well: checkpointing runs them again in
        # the backward pass, after the term was computed. Those runs are not recorded.
        self._recording = True
        self._model_called = False
        self._foreign = False
        self._step = 0
        # The hooks read a flag and not the step: under torch.compile a counter would mean a new
        # graph at every step, a flag means two graphs in all.
        self._due = True
        self._hooks: list[_Hook] = [_ModelHook(_INPUT, self)]
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._hooks[0], with_kwargs=True)
        ]
        for name, module in self._modules.items():
            self._hooks.append(_LayerHook(name, self))
            self._handles.append(module.register_forward_hook(self._hooks[-1], with_kwargs=True))

    def __call__(self) -> Tensor:
        """The term times beta at this step: a scalar to add to the loss; 0 on a skipped step."""
        value = self.compute()
        if self.model.training:
            self.advance()
        return value

    def compute(self) -> Tensor:
        """Like ``reg()``, but does not count the step.

        For loops that count for themselves: a step replayed from a CUDA graph runs no Python and
        is counted by ``advance()`` alone.
        """
        if not self._handles:
            raise RuntimeError("this CKASR was removed from its model; make a new one")
        features, self._features = self._features, {}
        self._recording = not self._model_called
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

    def reset(self, epoch: int = 0) -> None:
        """Count steps from 0, so that the next one has the term: at the start of an epoch, say.

        epoch: for terms in ``ckasr.terms`` that are random; CKA-SR does not depend on it.
        """
        self._step = 0
        self._due = True
        self._features = {}

    def remove(self) -> None:
        """Take every hook off the model, and let go of the model and all features."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._hooks = [], []
        self._features, self._modules = {}, {}
        self.model = None

    def __enter__(self) -> "CKASR":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def __getstate__(self) -> dict[str, Any]:
        """Copied or pickled together with its model, a CKASR goes on in the copy."""
        return self.__dict__ | {"_features": {}, "term": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for hook in self._hooks:
            hook.owner = weakref.ref(self)

    def __repr__(self) -> str:
        model = type(self.model).__name__ if self._handles else "removed"
        options = ("beta", "variant", "samples", "every", "pairs", "rescale", "batch_dim")
        head = ", ".join(f"{name}={getattr(self, name)!r}" for name in options)
        what = "layers, grouped by resolution: " if self._by_resolution else ""
        lines = [f"  {what}{', '.join(stage)}" for stage in self.stages]
        return "\n".join([f"{type(self).__name__}({model}, {head})", *lines])

    @property
    def active(self) -> bool:
        """Whether the coming step has the term."""
        return self._due

    def _zero(self) -> Tensor:
        parameter = next(self.model.parameters(), None)
        return torch.zeros((), device=None if parameter is None else parameter.device)

    def _acts(self, module: nn.Module) -> bool:
        """Whether this pass through a module belongs to a step of the model that has the term."""
        if not (self._due and self.model.training):
            return False
        if _is_foreign(module):
            self._foreign = True
            return False
        return True

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pass of the model begins: forget what an earlier one left."""
        if not self._acts(model):
            return
        self._features = {}
        self._batch = None
        self._foreign = False
        self._recording = self._model_called = True
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()]
        if tensors:
            self._batch = tensors[0].shape[_own_batch_dim(model) or 0]
        if self.pairs == "input":
            if not tensors:
                raise ValueError("pairs='input' needs a model that is called with a tensor")
            if not tensors[0].is_floating_point():
                raise ValueError(
                    f"pairs='input' compares real numbers, but the model's input is "
                    f"{tensors[0].dtype}: compare with its embedding layer, pairs='all'"
                )
            dim = self._dim(_INPUT, tensors[0])
            first = tensors[0].narrow(dim, 0, self._count(tensors[0], dim))
            self._features[_INPUT] = first.clone().movedim(dim, 0)

    def _record(
        self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> Any:
        """Copy the first samples of a layer's output; returns what replaces that output, if so."""
        if not (self._acts(module) and self._recording):
            return None
        x = _tensor(name, out)
        dim = self._dim(name, x)
        count = self._count(x, dim)
        # A layer that returns its own input, or a view of another tensor: later in-place
        # operations reach that tensor through autograd only if the output itself is passed on.
        shared = x is not out or x._is_view() or any(x is v for v in (*args, *kwargs.values()))
        if shared or torch.compiler.is_compiling():
            passed, first = None, x.narrow(dim, 0, count).clone()
        else:
            passed, first = _FirstSamples.apply(x, dim, count)
        self._features[name] = first.movedim(dim, 0)
        return passed

    def _count(self, x: Tensor, dim: int) -> int:
        return x.shape[dim] if self.samples is None else min(self.samples, x.shape[dim])

    def _dim(self, name: str, x: Tensor) -> int:
        """The dimension of a layer's output that counts samples."""
        own = _own_batch_dim(self.model if name == _INPUT else self._modules[name])
        dim = own or 0 if self.batch_dim is None else self.batch_dim
        problem = None
        if x.dim() <= dim or (own == 1 and self.batch_dim is None and x.dim() < 3):
            problem = f"it has no sample dimension {dim}"
        elif self.batch_dim is None and own is None:
            if self._sequence_first is not None and x.dim() == 3:
                problem = (
                    f"layer {self._sequence_first!r} of the model has batch_first=False: say which "
                    "dimension counts samples, CKASR(..., batch_dim=0) or batch_dim=1"
                )
            elif self._batch is not None and x.shape[0] != self._batch:
                problem = (
                    f"the batch has {self._batch} samples: if windows or time steps are folded "
                    "into its rows, name another layer; if samples are counted by another "
                    "dimension, or the model makes several samples of one, give batch_dim"
                )
        if problem:
            what = "the model's input" if name == _INPUT else f"the output of layer {name!r}"
            raise ValueError(f"{what} has shape {tuple(x.shape)}; {problem}")
        return dim

    def _grouped(self, features: dict[str, Tensor]) -> list[list[Tensor]]:
        self._check_run(features)
        if torch.is_grad_enabled():
            self._check_gradients(features)
        for name, feature in features.items():
            if len(feature) < MIN_UNBIASED_SAMPLES:
                raise ValueError(
                    f"layer {name!r} saw {len(feature)} samples, CKA-SR needs at least "
                    f"{MIN_UNBIASED_SAMPLES}: take a larger batch size, and drop a smaller last "
                    "batch (DataLoader(..., drop_last=True))"
                )
        groups = [[features[name] for name in stage] for stage in self.stages]
        if self._found:
            for stage, group in zip(self.stages, groups, strict=True):
                _check_one_resolution(stage, group)
        if self._by_resolution:
            by_shape: dict[tuple[int, ...], list[Tensor]] = {}
            for feature in groups[0]:
                by_shape.setdefault(tuple(feature.shape[2:]), []).append(feature)
            groups = list(by_shape.values())
            if self.pairs in (None, "within") and self.variant != "aug":
                _check_some_pair(self.stages[0], groups)
        if self.pairs == "input":
            groups.insert(0, [features[_INPUT]])
        return groups

    def _check_run(self, features: dict[str, Tensor]) -> None:
        if missing := [name for name in self._modules if name not in features]:
            if self._foreign:
                why = (
                    "the model ran with other parameters than its own (torch.func.functional_call) "
                    "or in replicas (torch.nn.DataParallel), which the term cannot train"
                )
            else:
                why = (
                    "call the model itself, not a copy, in train mode before reg(), and name only "
                    "layers that every forward pass runs. A model that was compiled and has run "
                    "before CKASR was made must be compiled anew: torch.compiler.reset()"
                )
            raise RuntimeError(
                f"no forward pass of {', '.join(missing)} since the last step: {why}"
            )

    def _check_gradients(self, features: dict[str, Tensor]) -> None:
        without = [name for name in self._modules if not features[name].requires_grad]
        trained = [
            name
            for name in without
            if any(p.requires_grad for p in self._modules[name].parameters())
        ]
        if trained:
            raise RuntimeError(
                f"{', '.join(trained)} ran without gradients, so the term would not train them: "
                "checkpointing needs use_reentrant=False, and torch.no_grad() may not be around "
                "the layers that are compared"
            )
        if len(without) == len(self._modules):
            raise RuntimeError("all layers of the term are frozen: it would train nothing")


class _Hook:
    """A hook of a CKASR on a layer.

    A copy of the hook, as it is made with a deep copy of the model or by pickling it, belongs to no
    CKASR and does nothing, until a CKASR that was copied along takes it over.
    """

    def __init__(self, name: str, owner: CKASR | None = None) -> None:
        self.name = name
        self.owner = (lambda: None) if owner is None else weakref.ref(owner)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name,)


class _ModelHook(_Hook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (owner := self.owner()) is not None:
            owner._begin(module, args, kwargs)


class _LayerHook(_Hook):
    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        if (owner := self.owner()) is not None:
            return owner._record(self.name, module, args, kwargs, output)
        return None


class _FirstSamples(torch.autograd.Function):
    """Passes ``x`` on and copies out its first samples along a dimension.

    Slicing would do the same, but its backward writes the few rows into zeros of the full size and
    adds those to the gradient, which takes more than twice as long. Here they are added to a copy
    of the gradient: autograd may have handed the same tensor to other branches or hooks.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dim: int, count: int) -> tuple[Tensor, Tensor]:
        # detach, not view_as: the next layer may work in place, which views of a Function forbid.
        return x.detach(), x.narrow(dim, 0, count).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, int], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.shape = inputs[0].shape
        ctx.dim, ctx.count = inputs[1:]

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, few: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        if few is None:
            return grad, None, None
        grad = few.new_zeros(ctx.shape) if grad is None else grad.clone()
        grad.narrow(ctx.dim, 0, few.shape[ctx.dim]).add_(few)
        return grad, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, dim: None, count: None) -> tuple[Tensor, Tensor]:
        return tangent.clone(), tangent.narrow(ctx.dim, 0, ctx.count).clone()


def _is_foreign(module: nn.Module) -> bool:
    """Whether a module runs with substituted parameters, or as a replica of DataParallel."""
    parameter = next(module.parameters(), None)
    substituted = parameter is not None and not isinstance(parameter, nn.Parameter)
    return substituted or getattr(module, "_is_replica", False)


def _own_batch_dim(module: nn.Module) -> int | None:
    """The sample dimension of a sequence layer of torch.nn, by its batch_first; None for others."""
    if not isinstance(module, _SEQUENCE_LAYERS):
        return None
    flags = (getattr(layer, "batch_first", None) for layer in module.modules())
    return 0 if next((flag for flag in flags if flag is not None), True) else 1


def _tensor(name: str, output: Any) -> Tensor:
    """The tensor that counts in what a layer returned."""
    x = output
    if isinstance(output, Mapping):
        x = next(iter(output.values()), None)
    elif isinstance(output, tuple | list) and not isinstance(output, PackedSequence):
        x = output[0] if output else None
    if not isinstance(x, Tensor):
        kind = type(output).__name__
        first = "" if x is output else f" that starts with {type(x).__name__}"
        raise ValueError(f"layer {name!r} returns {kind}{first}, not a tensor; name another layer")
    return x


def _check_one_resolution(stage: Sequence[str], group: Sequence[Tensor]) -> None:
    """For stages that were found: of (n, channels, ...) and (n, ..., channels), one must agree."""
    shapes = {tuple(feature.shape[1:]) for feature in group}
    if len({shape[1:] for shape in shapes}) > 1 and len({shape[:-1] for shape in shapes}) > 1:
        raise ValueError(
            f"the stage {', '.join(stage)} was found by the module tree, but its outputs have "
            f"several resolutions, {', '.join(map(str, sorted(shapes)))}: name the layers with "
            "stages=[[...], ...], or with layers=[...], which groups them by resolution"
        )


def _check_some_pair(names: list[str], groups: list[list[Tensor]]) -> None:
    if all(len(group) == 1 for group in groups):
        raise ValueError(
            f"no two of the layers {', '.join(names)} have one resolution, so the term is "
            "constant: name others, or compare across resolutions with pairs='all'"
        )


def _check_beta(beta: float | Tensor) -> None:
    if isinstance(beta, Tensor):
        if beta.dim() != 0:
            raise ValueError(f"beta must be a number or a 0-dim tensor, got shape {beta.shape}")
    elif not isinstance(beta, Real):
        raise ValueError(f"beta must be a number or a 0-dim tensor, got {beta!r}")
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be finite and not negative, got {beta}")


def _check_choice(what: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {what} {value!r}; choose one of: {', '.join(choices)}")


def _check_count(what: str, value: Any, least: int, otherwise: str = "") -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"{what} must be at least {least}{otherwise}, as an integer; got {value!r}"
        )


def _stages(
    model: nn.Module,
    stages: Sequence[Sequence[str]] | None,
    layers: Sequence[str] | Predicate | None,
) -> list[list[str]]:
    if stages is not None and layers is not None:
        raise ValueError("give stages or layers, not both")
    if isinstance(layers, str):
        raise ValueError(f"layers is a list of names, or a predicate; for one name, [{layers!r}]")
    if stages is not None and (isinstance(stages, str) or any(isinstance(s, str) for s in stages)):
        raise ValueError(
            "stages is a list of lists of layer names, one list a stage; for one flat list of "
            "names use layers="
        )
    if callable(layers):
        return [[name for name, module in model.named_modules() if name and layers(name, module)]]
    if layers is not None:
        return [list(layers)]
    return find_stages(model) if stages is None else [list(stage) for stage in stages]


def _modules(model: nn.Module, stages: list[list[str]]) -> dict[str, nn.Module]:
    """The named layers; a module that is registered under several names goes by any of them."""
    known = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, nn.Module] = {}
    for name in (name for stage in stages for name in stage):
        if not name or name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=3, cutoff=0.3)
            hint = f"; nearest: {', '.join(nearest)}" if nearest else ""
            raise LookupError(f"{type(model).__name__} has no layer {name!r}{hint}")
        if same := [other for other, module in found.items() if module is known[name]]:
            what = "is named twice" if same[0] == name else f"is the same module as {same[0]!r}"
            raise ValueError(f"layer {name!r} {what}: name every layer once")
        found[name] = known[name]
    if not found:
        raise ValueError("CKA-SR has no layer to compare; name them with stages= or layers=")
    return found


def _check_pairs(stages: list[list[str]], pairs: str) -> None:
    """Refuse layers that have nothing to be compared with: their part of the term is constant."""
    if pairs == "input":
        return
    groups = stages if pairs == "within" else [[name for stage in stages for name in stage]]
    for group in groups:
        if len(group) == 1:
            raise ValueError(
                f"layer {group[0]!r} is the only one to compare with pairs={pairs!r}: its part of "
                "the term is constant; name at least two layers a stage"
            )
