"""CKASR: the CKA-SR term of arXiv 2307.07389 for any PyTorch training loop.

    reg = CKASR(model, beta=1e-4)
    loss = criterion(model(x), y) + reg()

Forward hooks copy a few samples of each layer's output; ``reg()`` computes the term from them. The
rest of the loop does not change, and ``reg.remove()`` removes the hooks.
"""

import math
import weakref
from collections.abc import Sequence
from numbers import Real
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ckasr.choices import check_choice, check_count
from ckasr.cka import MIN_UNBIASED_SAMPLES, Pairs, Variant, cka_sr_loss
from ckasr.features import (
    FirstSamples,
    check_one_resolution,
    check_some_pair,
    is_foreign,
    own_batch_dim,
    tensor_of,
)
from ckasr.layers import Predicate, check_pairs, choose_stages, named_layers
from ckasr.stages import Stages, find_stages

__all__ = ["CKASR", "find_stages"]

_INPUT = "<input>"


class CKASR:
    """The CKA-SR term of chosen layers, to be added to a training loss.

    The features of a layer are its output, before any in-place operation that follows. A layer may
    return a tensor ``(n, ...)``, or a tuple, list or mapping whose first entry is one. Features are
    read only while the model is in train mode, whatever the mode of its layers. In eval mode the
    hooks do nothing and ``reg()`` returns 0.

    Args:
        model: module to train. Call it as usual, directly or inside DistributedDataParallel or
            torch.compile (layers have their names in the module that was compiled). Deep copies
            (averaged models, mean teachers), pickled copies, and forward passes with other
            parameters (torch.func.functional_call) do not contribute to the term.
        beta: weight of the term; 1e-4 on CIFAR and 1e-5 on ImageNet in the paper. A number, or a
            0-dim tensor, which may be changed in place.
        variant: ``"official"``, ``"paper"`` or ``"aug"``; see :func:`ckasr.cka_sr_loss`.
        samples: number of samples of each batch to use, from the first one on, as in the authors'
            code; None for the whole batch.
        every: period in steps. The term is computed on the first step and then on every
            ``every``-th step; on other steps ``reg()`` returns 0.
        pairs: pairs of layers to compare. ``"within"``: the layers of each stage; ``"all"``: all
            layers; ``"adjacent"``: each layer with the next one; ``"input"``: each layer with the
            model's input; None: the default of the variant.
        stages: names of layers by stage, ``[["layer1.0", "layer1.1"], ["layer2.0", ...]]``. By
            default, the repeated blocks of the network (:func:`find_stages`). Pass the stages that
            were found earlier if the network has changed so that they can no longer be found, for
            example after filter pruning.
        layers: list of layer names, or predicate ``(name, module) -> bool``, instead of ``stages``.
            Layers of equal resolution (shape without the channels) form a stage.
        rescale: whether to multiply beta by ``every``, so that the mean strength of the term does
            not depend on ``every``. The authors' code does not do this.
        batch_dim: sample dimension of the layers' outputs and of the model's input. By default it
            is 0, and 1 for layers of ``torch.nn`` with ``batch_first=False``. A ValueError is
            raised where this is ambiguous: for other layers of a model with such layers, and for
            outputs whose number of rows differs from that of the model's input.

    Raises:
        ValueError: for invalid arguments; at a step, for fewer than 4 samples, for stages that were
            found but mix resolutions, and for an ambiguous sample dimension.
        LookupError: for the name of a layer that the model does not have.
        RuntimeError: at a step, if a layer has not run since the last step, or has run without
            gradients (``torch.no_grad``, checkpointing with ``use_reentrant=True``).

    One call of ``reg()`` in train mode counts as one step. The call uses the last forward pass of
    the model; if a layer runs twice in this pass, its last output is used. After the call, the
    CKASR object keeps neither the activations nor the autograd graph. The hooks hold a weak
    reference to the CKASR object and do nothing after it is deleted.
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
        check_choice("variant", variant, Variant)
        if pairs is not None:
            check_choice("pairs", pairs, Pairs)
        check_count("every", every, 1)
        if samples is not None:
            check_count("samples", samples, MIN_UNBIASED_SAMPLES, ", or None for the whole batch")
        if batch_dim is not None:
            check_count("batch_dim", batch_dim, 0)
        # torch.compile compiles hooks with their module, so a hook must not refer to the wrapper.
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
        """Value of the term at the last step, detached, without the factor beta; None if the last
        step had no term."""
        self._found = isinstance(stages, Stages) or (stages is None and layers is None)
        self._by_resolution = layers is not None
        self.stages = choose_stages(model, stages, layers)
        self._modules = named_layers(model, self.stages)
        check_pairs(self.stages, pairs or ("all" if variant == "aug" else "within"))
        self._sequence_first = next(
            (name for name, m in model.named_modules() if own_batch_dim(m) == 1), None
        )
        self._features: dict[str, Tensor] = {}
        self._batch: int | None = None
        # Checkpointing runs layers again in the backward pass, after the term is computed. Runs
        # outside the forward pass of the model are not recorded.
        self._recording = True
        self._model_called = False
        self._foreign = False
        self._step = 0
        # The hooks read a flag instead of the step count: under torch.compile, a counter would
        # cause a new graph at every step, while a flag causes two graphs in total.
        self._due = True
        first = _ModelHook(_INPUT, self)
        self._hooks: list[_Hook] = [first]
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(first, with_kwargs=True)
        ]
        for name, module in self._modules.items():
            hook = _LayerHook(name, self)
            self._hooks.append(hook)
            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def __call__(self) -> Tensor:
        """Return the term times beta as a scalar, or 0 on a skipped step.

        In train mode, the call counts as one step.
        """
        value = self.compute()
        if self.model.training:
            self.advance()
        return value

    def compute(self) -> Tensor:
        """Return the same value as ``reg()``, but do not count a step.

        A captured training step uses this method together with :meth:`advance`, because the replay
        of a CUDA graph runs no Python code.
        """
        if not self._handles:
            raise RuntimeError("this CKASR was removed from its model; make a new one")
        features, self._features = self._features, {}
        self._recording = not self._model_called
        self.term = None
        if not (self.model.training and self._due):
            return self._zero()
        term = self._value(self._grouped(features))
        self.term = term.detach()
        return term * (self.beta * self.every if self.rescale else self.beta)

    def advance(self) -> None:
        """Count one step."""
        self._step += 1
        self._due = self._step % self.every == 0

    def reset(self, epoch: int = 0) -> None:
        """Set the step count to 0, so that the next step has the term.

        Args:
            epoch: number of the epoch that starts. Only the random terms of ``ckasr.terms`` use it.
        """
        self._step = 0
        self._due = True
        self._features = {}

    def remove(self) -> None:
        """Remove all hooks, and drop the references to the model and to all features."""
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
        """Return the state without features, so that a copy with its model can be used at once."""
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
        """Whether the next step has the term."""
        return self._due

    def _zero(self) -> Tensor:
        parameter = next(self.model.parameters(), None)
        return torch.zeros((), device=None if parameter is None else parameter.device)

    def _acts(self, module: nn.Module) -> bool:
        """Return whether this forward pass of a module belongs to a step that has the term."""
        if not (self._due and self.model.training):
            return False
        if is_foreign(module):
            self._foreign = True
            return False
        return True

    def _begin(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Start a forward pass of the model: delete the features of the last one."""
        if not self._acts(model):
            return
        self._features = {}
        self._batch = None
        self._foreign = False
        self._recording = self._model_called = True
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()]
        if tensors:
            self._batch = tensors[0].shape[own_batch_dim(model) or 0]
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
        """Copy the first samples of a layer's output. Return the new output, or None to keep it."""
        if not (self._acts(module) and self._recording):
            return None
        x = tensor_of(name, out)
        dim = self._dim(name, x)
        count = self._count(x, dim)
        # If the output is an input of the layer, or a view of another tensor, it must be passed on
        # unchanged: only then does autograd apply later in-place operations to that tensor too.
        shared = x is not out or x._is_view() or any(x is v for v in (*args, *kwargs.values()))
        if shared or torch.compiler.is_compiling():
            passed, first = None, x.narrow(dim, 0, count).clone()
        else:
            passed, first = FirstSamples.apply(x, dim, count)
        self._features[name] = first.movedim(dim, 0)
        return passed

    def _count(self, x: Tensor, dim: int) -> int:
        return x.shape[dim] if self.samples is None else min(self.samples, x.shape[dim])

    def _dim(self, name: str, x: Tensor) -> int:
        """Return the sample dimension of a layer's output."""
        own = own_batch_dim(self.model if name == _INPUT else self._modules[name])
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

    def _value(self, groups: list[list[Tensor]]) -> Tensor:
        """Return the term without the factor beta. Other terms of ``ckasr.terms`` override this."""
        return cka_sr_loss(groups, self.variant, pairs=self.pairs)

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
                check_one_resolution(stage, group)
        if self._by_resolution:
            by_shape: dict[tuple[int, ...], list[Tensor]] = {}
            for feature in groups[0]:
                by_shape.setdefault(tuple(feature.shape[2:]), []).append(feature)
            groups = list(by_shape.values())
            if self.pairs in (None, "within") and self.variant != "aug":
                check_some_pair(self.stages[0], groups)
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
                    "layers that every forward pass runs. If the model was compiled and has run "
                    "before CKASR was created, compile it again after torch.compiler.reset()"
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
            raise RuntimeError(
                "all layers of the term are frozen, so the term would have no effect"
            )


class _Hook:
    """A forward hook of a CKASR object on a module.

    If a model is copied or pickled without its CKASR object, the copies of the hooks have no owner
    and do nothing. A CKASR object that is copied with the model becomes the owner of the copies.
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


def _check_beta(beta: float | Tensor) -> None:
    if isinstance(beta, Tensor):
        if beta.dim() != 0:
            raise ValueError(f"beta must be a number or a 0-dim tensor, got shape {beta.shape}")
    elif not isinstance(beta, Real):
        raise ValueError(f"beta must be a number or a 0-dim tensor, got {beta!r}")
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta must be finite and not negative, got {beta}")
