"""A common training loop in float32 with a DataLoader of PIL images, as a reference."""

from collections.abc import Callable
from itertools import chain, repeat

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ckasr import models

from .data import pil_dataset


class PlainLoop:
    """A network at sparsity 0.95, with data loaders in the main process (PyTorch's default)."""

    def __init__(
        self, name: str, device: str, images: int, batch_size: int = 128, test: int = 0
    ) -> None:
        torch.manual_seed(0)
        self.device = torch.device(device)
        self.model = models.create(name, num_classes=100).to(self.device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        how = {"batch_size": batch_size, "shuffle": True, "drop_last": True}
        self.loader = DataLoader(pil_dataset(images), **how)
        self.test = DataLoader(pil_dataset(test, augment=False), batch_size=1000)
        self.weights = [p for p in self.model.parameters() if p.dim() > 1]
        self.masks = [(torch.rand_like(w) < 0.05).float() for w in self.weights]

    def step(self, x: Tensor, y: Tensor) -> None:
        """Take one training step on images (batch, 3, 32, 32) and labels (batch,)."""
        loss = nn.functional.cross_entropy(self.model(x.to(self.device)), y.to(self.device))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        for weight, mask in zip(self.weights, self.masks, strict=True):
            weight.data = weight.data * mask

    def epoch(self) -> float:
        """Train on all images once and return the accuracy on the test images."""
        self.model.train()
        for x, y in self.loader:
            self.step(x, y)
        self.model.eval()
        correct = 0
        with torch.no_grad():
            for x, y in self.test:
                predicted = self.model(x.to(self.device)).argmax(1)
                correct += (predicted == y.to(self.device)).sum().item()
        return correct / len(self.test.dataset)


def step(name: str, device: str, images: int, batch_size: int = 128) -> Callable[[], None]:
    """Make a callable that loads a batch and takes one training step; see `PlainLoop`."""
    loop = PlainLoop(name, device, images, batch_size)
    batches = chain.from_iterable(repeat(loop.loader))
    return lambda: loop.step(*next(batches))


def epoch(name: str, device: str, images: int, test: int) -> Callable[[], float]:
    """Make a callable that trains for one epoch and returns the test accuracy; see `PlainLoop`."""
    return PlainLoop(name, device, images, test=test).epoch
