"""Building: from settings to an engine that is ready to train."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ckasr import methods, models, terms
from ckasr.cka import MIN_UNBIASED_SAMPLES
from ckasr.data import Batches, Dataset, keyed_generator, split
from ckasr.devices import Device
from ckasr.models.noise import Noise
from ckasr.stages import find_stages
from ckasr.training import Engine, Recipe
from ckasr.training.term_curve import TERM_SAMPLES, queued_term

from .settings import Settings

EVALUATION_BATCH = 1000
"""Batch size for measuring accuracy."""
SPARSE_EVALUATION_BATCH = 125
"""The same for sparse execution, which gains nothing from larger batches but needs more memory."""


def build_engine(
    settings: Settings, dataset: Dataset, device: Device, execution: str = "dense"
) -> Engine:
    """Build data, model, method, term and recipe of a run.

    Args:
        settings: settings of the run.
        dataset: the data set that they name.
        device: device to train on.
        execution: ``auto``, ``dense`` or ``sparse``; see ``ckasr.execution.choose``.
    """
    training, validation = training_batches(settings, dataset, device, execution)
    model = build_model(settings, dataset, device)
    context = methods.Context(
        model=model,
        sparsity=settings.sparsity,
        distribution=settings.distribution,
        seed=settings.seed,
        num_classes=dataset.num_classes,
        samples=training.in_order,
        steps_per_epoch=len(training),
        task=dataset.task.smoothed(settings.label_smoothing),
    )
    noise = build_noise(settings, model)
    return Engine(
        context,
        methods.create(settings.method, settings.method_options),
        recipe_of(settings),
        training,
        settings.seed,
        validation,
        term_builder(settings, model),
        term_meter(settings, model, training if validation is None else validation),
        noise=noise,
        owner=settings.id,
        # A captured step would repeat its random numbers.
        capture="auto" if noise is None else None,
        execution=execution,
    )


def build_model(settings: Settings, dataset: Dataset, device: Device) -> nn.Module:
    """Build the model. Its weights are drawn on the CPU, so they are the same on every device.

    Raises ValueError for a model that does not fit the data set.
    """
    torch.manual_seed(keyed_generator("weights", settings.seed).initial_seed())
    model = models.create(
        settings.model,
        num_classes=dataset.num_classes,
        input_shape=dataset.example_input.shape[1:],
        **dataset.model_options,
    )
    # torch's stubs do not know the argument memory_format.
    return model.to(device.place, memory_format=dataset.task.memory_format)  # type: ignore[call-overload]


def build_noise(settings: Settings, model: nn.Module) -> Noise | None:
    """Add dropout and noise to the model; return None if the settings have neither."""
    if not (settings.dropout or settings.noise):
        return None
    return Noise(model, settings.seed, dropout=settings.dropout, noise=settings.noise)


def training_batches(
    settings: Settings, dataset: Dataset, device: Device, execution: str
) -> tuple[Batches, Batches | None]:
    """Return the training batches and the validation batches, or None without validation."""
    train, held_out = split(dataset.train_labels, settings.validation, settings.seed)

    def batches(index: Tensor, size: int, augment: str) -> Batches:
        return dataset.train_batches(
            index,
            batch_size=size,
            augment=augment,
            seed=settings.seed,
            order_seed=settings.order_seed,
            device=device.place,
        )

    size = evaluation_batch(execution, device)
    validation = batches(held_out, size, "none") if len(held_out) else None
    return batches(train, settings.batch_size, settings.augment), validation


def recipe_of(settings: Settings) -> Recipe:
    """Return the recipe of SGD."""
    return Recipe(
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        milestones=settings.milestones,
        decay=settings.decay,
        precision=settings.precision,
    )


def term_builder(settings: Settings, model: nn.Module) -> Callable[[nn.Module], terms.Term] | None:
    """Return a function that adds the terms to a model, or None for a baseline.

    The HSIC term of the setting ``hsic`` compares the samples and pairs of the official code.

    The layers to compare are found here, before any training. A method that removes filters leaves
    blocks of unequal shapes, in which they could not be found again.

    Raises ValueError for a model in which no layers to compare are found.
    """
    if settings.beta == settings.hsic == 0:
        return None
    stages = find_stages(model)
    chosen = partial(
        terms.create,
        settings.term,
        beta=settings.beta,
        seed=settings.seed,
        variant=settings.variant,
        samples=settings.samples or None,
        every=settings.every,
        pairs=settings.pairs or None,
        stages=stages,
    )
    if settings.hsic == 0:
        return chosen
    hsic = partial(terms.create, "hsic", beta=settings.hsic, stages=stages)
    if settings.beta == 0:
        return hsic
    return lambda network: terms.Combined([chosen(network), hsic(network)])


def term_meter(
    settings: Settings, model: nn.Module, batches: Batches
) -> Callable[[nn.Module], Tensor | None] | None:
    """Return a function that measures the term of CKA-SR on the first samples of these batches.

    It is the same function in all arms. None for a model in which no layers to compare are found,
    or for fewer samples than the term needs.
    """
    try:
        stages = find_stages(model)
    except ValueError:
        return None
    inputs, _ = next(batches.in_order(TERM_SAMPLES))
    if len(inputs) < MIN_UNBIASED_SAMPLES:
        return None
    return partial(queued_term, stages=stages, inputs=inputs, precision=settings.precision)


def evaluation_batch(execution: str, device: Device) -> int:
    """Return the batch size for measuring accuracy."""
    sparse = execution != "dense" and device.has_sparse_kernels
    return SPARSE_EVALUATION_BATCH if sparse else EVALUATION_BATCH
