"""Random noise inside a network in train mode: dropout, and Gaussian noise on features.

The random numbers come from a generator that is seeded at the start of each epoch. A run that is
interrupted and resumed therefore repeats them, and both runs of a pair use the same numbers.
"""

from torch import Generator, Tensor, nn, rand, randn

from ckasr.data import keyed_generator
from ckasr.sparsity.layers import weight_owners
from ckasr.stages import find_stages


class Noise:
    """Adds dropout and Gaussian noise to a network by hooks that act in train mode only.

    Args:
        model: the network.
        seed: seed of the random numbers.
        dropout: probability with which each input of the classifier, which is the last linear
            layer, is set to 0; the others are divided by ``1 - dropout``.
        noise: standard deviation of independent Gaussian noise that is added to every entry of the
            output of each stage, which is the output of the last block of the stage.

    Raises:
        ValueError: if the last layer with a weight is not linear, or if no stage is found.
    """

    def __init__(self, model: nn.Module, seed: int, *, dropout: float, noise: float) -> None:
        self.seed, self.dropout, self.noise = seed, dropout, noise
        self.generator = Generator(next(model.parameters()).device)
        self.reset(-1)
        if dropout:
            classifier = list(weight_owners(model).values())[-1]
            if not isinstance(classifier.module, nn.Linear):
                kind = type(classifier.module).__name__
                raise ValueError(
                    f"setting dropout needs a linear classifier, but the last layer, "
                    f"{classifier.layer!r}, is a {kind}: choose another model, or dropout 0"
                )
            classifier.module.register_forward_pre_hook(self._drop)
        if noise:
            for name in noisy_layers(model):
                model.get_submodule(name).register_forward_hook(self._add)

    def reset(self, epoch: int) -> None:
        """Seed the random numbers of an epoch.

        Args:
            epoch: unique number of the epoch within the run, or -1 before training.
        """
        seed = keyed_generator("noise in layers", self.seed, epoch).initial_seed()
        self.generator.manual_seed(seed)

    def _drop(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not module.training:
            return None
        x, *rest = args
        kept = rand(x.shape, device=x.device, generator=self.generator) >= self.dropout
        return (x * kept / (1 - self.dropout), *rest)

    def _add(self, module: nn.Module, args: tuple[Tensor, ...], output: object) -> Tensor | None:
        if not module.training:
            return None
        if not isinstance(output, Tensor):
            raise ValueError(
                f"setting noise needs stages that return a tensor, but {type(module).__name__} "
                f"returns {type(output).__name__}: choose another model, or noise 0"
            )
        # Contiguous, so that the noise of an entry does not depend on the memory format.
        drawn = randn(output.shape, device=output.device, generator=self.generator)
        return output + self.noise * drawn.to(output.dtype)


def noisy_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers whose outputs get Gaussian noise: the last of each stage.

    Args:
        model: the network.

    Raises:
        ValueError: if no stage is found.
    """
    try:
        return [stage[-1] for stage in find_stages(model)]
    except ValueError as error:
        raise ValueError(f"setting noise needs a model with stages: {error}") from None
