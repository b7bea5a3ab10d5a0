"""A whole training step, ours against the loop that most users write."""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader

from ckasr import models
from ckasr.data import Batches
from ckasr.methods import Context, create
from ckasr.training import Step

from .data import MEAN, STD, pil_dataset, random_images
from .timing import Timing, interleaved


def measure(device: torch.device, rounds: int) -> list[Timing]:
    """ResNet20 and ResNet32, batch 128, masks at 0.95, augmentation included.

    The reference: float32, NCHW, a DataLoader with PIL transforms in the main process, masks
    multiplied weight by weight.
    """
    timings = []
    for name in ("resnet20", "resnet32"):
        variants = {
            "plain loop, fp32": plain(name, device),
            "ckasr, fp32": ours(name, device, "fp32"),
            "ckasr, bf16": ours(name, device, "bf16"),
        }
        timings += interleaved(f"step {name}", variants, rounds=rounds, device=device)
    return timings


def plain(name: str, device: torch.device) -> Callable[[], None]:
    torch.manual_seed(0)
    model = models.create(name, num_classes=100).to(device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, foreach=False
    )
    loader = DataLoader(pil_dataset(), batch_size=128, shuffle=True, drop_last=True)
    batches = iter(loader)
    weights = [p for p in model.parameters() if p.dim() > 1]
    masks = [(torch.rand_like(w) < 0.05).float() for w in weights]

    def step() -> None:
        nonlocal batches
        if (batch := next(batches, None)) is None:
            batches = iter(loader)
            batch = next(batches)
        x, y = batch[0].to(device), batch[1].to(device)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for weight, mask in zip(weights, masks, strict=True):
            weight.data = weight.data * mask

    return step


def ours(name: str, device: torch.device, precision: str) -> Callable[[], None]:
    from ckasr.sparsity import dense_masks, layer_densities, random_masks

    torch.manual_seed(0)
    model = models.create(name, num_classes=100).to(device, memory_format=torch.channels_last)
    images, labels = random_images()
    batches = Batches(
        images,
        labels,
        mean=MEAN,
        std=STD,
        batch_size=128,
        augment="crop-flip",
        device=device,
    )
    context = Context(model, 0.95, "erk", 0, 100, batches.in_order)
    context.masks = dense_masks(model)
    shapes = context.shapes()
    context.masks.update(random_masks(shapes, layer_densities(shapes, 0.05, "erk"), 0))
    context.optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    step = Step(context, create("random"), None, precision)
    epoch, iterator = 0, batches.epoch(0)

    def one() -> None:
        nonlocal epoch, iterator
        if (batch := next(iterator, None)) is None:
            epoch += 1
            iterator = batches.epoch(epoch)
            batch = next(iterator)
        step(*batch)

    return one
