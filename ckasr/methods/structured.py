"""Filter pruning: whole channels of a trained network are removed, and the network is fine-tuned.

The package torch-pruning (Fang et al. 2023, "DepGraph", arXiv 2301.12900) finds which channels
depend on each other and must be removed together, such as those of a residual stream. It also
measures the importance of each channel. Its channel ratio r removes about 1 - (1 - r)^2 of the
weights. Here the sparsity counts weights, as for every other method: the least important channels
of the whole network are removed one by one until the number of weights is at most the allowed
number. The difference between the two numbers is less than the weights of one channel.
"""

import copy
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ckasr.choices import one_of
from ckasr.data import data_root
from ckasr.models import load_pretrained
from ckasr.sparsity import Masks, dense_masks, prunable
from ckasr.sparsity.layers import CONVOLUTIONS

from .finetune import Finetuned
from .method import Context, Phase, TrainingState

Criterion = Literal["l1", "bn", "group"]
TermPhases = Literal["pretrain", "finetune", "both"]

Removed = dict[str, list[int]]
"""Channels to remove, by the layer that computes them. All weights that depend on these channels
are removed with them."""


@dataclass
class Structured(Finetuned):
    """Trains the network, removes its least important channels, then fine-tunes it.

    Args:
        criterion: how a channel's importance is measured; scores are divided by their layer's mean
            unless noted. ``l1``: L1 norm of the filter that computes the channel (Li et al. 2017,
            arXiv 1608.08710); in a residual stream this is the filter of the projection or of the
            stem. ``bn``: scales of its batch norms, not divided (network slimming, Liu et al. 2017,
            arXiv 1708.06519). ``group``: squared L2 norm of all weights that are removed with the
            channel (DepGraph).
        weights: file of a pretrained network, which is loaded instead of the pre-training. A
            relative path is also searched for in CKASR_DATA/weights.
        gamma_l1: strength of an L1 penalty on the scales of batch norms in pre-training (network
            slimming uses 1e-5 to 1e-4).
        term: phases in which the term is added to the loss: ``pretrain``, ``finetune`` or ``both``.
            The term compares the same layers in both phases: those of the unpruned network.
        finetune, finetune_rate: see ``Finetuned``.
    """

    name: ClassVar[str] = "structured"
    summary: ClassVar[str] = (
        "prunes filters of a trained network by L1, batch-norm scale or group norm, then "
        "fine-tunes (Fang et al. 2023)"
    )

    criterion: str = "group"
    weights: str = ""
    gamma_l1: float = 0.0
    term: str = "both"

    def __post_init__(self) -> None:
        super().__post_init__()
        checks = {
            "criterion": one_of(self.criterion, Criterion),
            "term": one_of(self.term, TermPhases),
            "gamma_l1": (self.gamma_l1 >= 0, "at least 0"),
        }
        if self.weights:
            checks["term"] = (
                self.term != "pretrain",
                "finetune or both where weights= takes the place of pre-training",
            )
            checks["finetune"] = (
                self.finetune > 0,
                "positive where weights= leaves no other training",
            )
        for option, (fine, rule) in checks.items():
            if not fine:
                raise ValueError(
                    f"option {option}={getattr(self, option)!r} of method 'structured' must be "
                    f"{rule}"
                )
        self._removed: Removed | None = None
        self._counted: tuple[nn.Module, dict[str, Tensor]] | None = None

    def phases(self, epochs: int, context: Context) -> list[Phase]:
        before = Phase("pretrain", epochs, term=self.term != "finetune")
        after = self.finetuning(epochs, term=self.term != "pretrain")
        return after if self.weights else [before, *after]

    def prepare(self, context: Context) -> Mapping[str, Tensor]:
        _Channels(context).check()  # raises an error before the training instead of after it
        _rehearse(context)
        if self.weights:
            load_pretrained(context.model, _find(self.weights))
            return self._prune(context)
        return super().prepare(context)

    def penalty(self, context: Context, state: TrainingState) -> Tensor | None:
        if self.gamma_l1 == 0 or state.phase.name != "pretrain":
            return None
        norms = (nn.modules.batchnorm._BatchNorm,)
        scales = [m.weight for m in context.model.modules() if isinstance(m, norms) and m.affine]
        if not scales:
            raise ValueError(f"option gamma_l1: {type(context.model).__name__} has no batch norm")
        return self.gamma_l1 * torch.stack([scale.abs().sum() for scale in scales]).sum()

    def end_phase(self, context: Context, state: TrainingState) -> None:
        if state.phase.name == "pretrain":
            state.masks = self._prune(context)

    def counted(
        self, context: Context, masks: Mapping[str, Tensor]
    ) -> tuple[nn.Module, Mapping[str, Tensor]]:
        """Return the network before pruning, and masks of the weights that were not removed."""
        return self._counted or super().counted(context, masks)

    def state(self) -> dict[str, Any]:
        return {"removed": self._removed}

    def restore(self, state: dict[str, Any], context: Context) -> None:
        if state["removed"] is not None:
            self._remove(state["removed"], context)

    def _prune(self, context: Context) -> Masks:
        channels = _Channels(context)
        scores = channels.importance(self.criterion)
        self._remove(channels.least_important(scores), context)
        # The remaining weights are new tensors, and all of them are kept.
        return dense_masks(context.model)

    def _remove(self, removed: Removed, context: Context) -> None:
        original = copy.deepcopy(context.model).cpu()
        masks = _Channels(context).remove(removed)
        for module in context.model.modules():
            if isinstance(module, nn.Conv2d):
                # torch's stubs do not know the argument memory_format.
                module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._removed, self._counted = removed, (original, masks)


class _Channels:
    """The removable channels of a network, in groups of channels that depend on each other."""

    def __init__(self, context: Context) -> None:
        self.package = _torch_pruning()
        self.model, self.kept = context.model, context.kept
        self.sizes = {name: weight.shape for name, weight in prunable(self.model).items()}
        layers = {name: self.model.get_submodule(name.rpartition(".")[0]) for name in self.sizes}
        for name, layer in layers.items():
            if not isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
                raise ValueError(
                    f"weight {name!r} belongs to a {type(layer).__name__}: method 'structured' "
                    "prunes convolutions and linear layers only"
                )
            if getattr(layer, "groups", 1) != 1:
                raise ValueError(
                    f"layer {name!r} is a grouped convolution: method 'structured' prunes plain "
                    "ones only"
                )
        self.names = {layer: name for name, layer in layers.items()}
        shared = [
            path
            for path, module in self.model.named_modules()
            if isinstance(module, (*CONVOLUTIONS, nn.Linear)) and module not in self.names
        ]
        if shared:
            raise ValueError(
                f"layer {shared[0]!r} shares its weight with another: method 'structured' cannot "
                "take channels out of one of them"
            )
        training = self.model.training
        image = next(context.samples())[0][:1]
        with torch.enable_grad():  # the package reads the graph that autograd builds
            self.graph = self.package.DependencyGraph().build_dependency(
                self.model.eval(), example_inputs=image
            )
        self.model.train(training)
        classifier = list(self.names)[-1]
        groups = self.graph.get_all_groups(
            ignored_layers=[classifier],
            root_module_types=tuple({type(layer) for layer in self.names}),
        )
        self.groups = {
            self.names[group[0].dep.target.module]: group for group in groups if self._whole(group)
        }

    def check(self) -> None:
        """Raise ValueError if one channel per group already has more weights than allowed."""
        least = self._count(self._take(self._all_but_one()))
        total = sum(shape.numel() for shape in self.sizes.values())
        if least > self.kept:
            raise ValueError(
                f"a sparsity of {1 - self.kept / total:.6g} asks for {self.kept} weights, but with "
                f"one channel left in each group {least} remain: filter pruning of "
                f"{type(self.model).__name__} reaches at most {1 - least / total:.6g}"
            )

    def importance(self, criterion: str) -> dict[str, Tensor]:
        """Return the importance of each group's channels, by the layer that computes them."""
        kinds = self.package.importance
        measure = {
            "l1": lambda: kinds.MagnitudeImportance(p=1, group_reduction="first"),
            "bn": lambda: kinds.BNScaleImportance(normalizer=None),
            "group": lambda: kinds.GroupMagnitudeImportance(p=2),
        }[criterion]()
        scores = {}
        for name, group in self.groups.items():
            score = measure(group)
            if score is None or not torch.isfinite(score).all():
                raise ValueError(
                    f"criterion {criterion!r} gives no importance to the channels of {name!r}"
                    + (": no batch norm follows it" if criterion == "bn" else "")
                )
            scores[name] = score.detach().cpu()
        return scores

    def least_important(self, scores: Mapping[str, Tensor]) -> Removed:
        """Return the fewest channels, least important first, whose removal reaches the sparsity.

        Ties are removed in the order of layers and channels. The most important channel of each
        group is kept.
        """
        self.check()
        candidates = []
        for name, score in scores.items():
            best = int(score.argmax())
            candidates += [(value, name, c) for c, value in enumerate(score.tolist()) if c != best]
        candidates.sort(key=lambda candidate: candidate[0])  # stable
        low, high = 0, len(candidates)
        while low < high:
            middle = (low + high) // 2
            taken = self._take((name, c) for _, name, c in candidates[:middle])
            if self._count(taken) > self.kept:
                low = middle + 1
            else:
                high = middle
        return self._take((name, c) for _, name, c in candidates[:low])

    def remove(self, removed: Removed) -> dict[str, Tensor]:
        """Remove channels from the model in place.

        Returns masks of the original weights, in which the removed weights are False.
        """
        masks = self._survivors(removed)
        for name, channels in removed.items():
            root = self.groups[name][0].dep
            self.graph.get_pruning_group(root.target.module, root.handler, channels).prune()
        return masks

    def _all_but_one(self) -> Iterable[tuple[str, int]]:
        return (
            (name, c) for name, group in self.groups.items() for c in range(1, len(group[0].idxs))
        )

    def _take(self, channels: Iterable[tuple[str, int]]) -> Removed:
        removed: Removed = {}
        for name, channel in channels:
            removed.setdefault(name, []).append(channel)
        return {name: sorted(channels) for name, channels in removed.items()}

    def _whole(self, group: Any) -> bool:
        """Return whether a group covers all channels of its layers.

        A group with a shortcut that pads with zeros (option A) does not: the package takes channel
        i on both sides for the same channel, although the padding shifts it. The channels of such a
        residual stream are not removed.
        """
        for dep, idxs in group:
            side = self._side(dep)
            if side is not None and len(set(idxs)) != self._shape(dep)[side]:
                return False
        return True

    def _side(self, dep: Any) -> int | None:
        """Return the dimension of the prunable weight that a dependency concerns, or None."""
        if dep.target.module not in self.names:
            return None
        return 0 if self.graph.is_out_channel_pruning_fn(dep.handler) else 1

    def _shape(self, dep: Any) -> torch.Size:
        return self.sizes[self.names[dep.target.module]]

    def _survivors(self, removed: Removed) -> dict[str, Tensor]:
        masks = {name: torch.ones(shape, dtype=torch.bool) for name, shape in self.sizes.items()}
        for name, channels in removed.items():
            gone = set(channels)
            for item in self.groups[name]:
                dep, idxs = item
                if (side := self._side(dep)) is None:
                    continue
                out = [i for i, r in zip(idxs, item.root_idxs, strict=True) if r in gone]
                masks[self.names[dep.target.module]].index_fill_(side, torch.tensor(out), False)
        return masks

    def _count(self, removed: Removed) -> int:
        return sum(int(mask.sum()) for mask in self._survivors(removed).values())


def _rehearse(context: Context) -> None:
    """Remove all channels but one of each group from a copy of the model, and run the copy.

    Raises:
        ValueError: if the copy cannot run. The forward pass of a network that splits its channels
            into attention heads, or reshapes to a fixed width, needs the original number of
            channels.
    """
    # `replace` reads every field that is not given, and this method must not read the distribution.
    trial = replace(context, model=copy.deepcopy(context.model), distribution="uniform")
    channels = _Channels(trial)
    try:
        channels.remove(channels._take(channels._all_but_one()))
        with torch.no_grad():
            trial.model.eval()(next(context.samples())[0][:1])
    except (RuntimeError, IndexError) as error:
        line = str(error).splitlines()[0]
        raise ValueError(
            f"method 'structured' cannot take channels out of {type(context.model).__name__}, "
            f"whose forward pass needs their number: {line}"
        ) from error


def _torch_pruning() -> ModuleType:
    try:
        with warnings.catch_warnings():
            # The package imports tqdm, which warns in Jupyter if ipywidgets is not installed.
            warnings.filterwarnings("ignore", "IProgress not found")
            import torch_pruning
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "method 'structured' needs the package torch-pruning: pip install 'ckasr[structured]'"
        ) from None
    return torch_pruning


def _find(weights: str) -> Path:
    path = Path(weights).expanduser()
    beside = data_root() / "weights" / path
    return beside if not path.exists() and beside.exists() else path
