"""One training step: batch, forward pass, loss, term, backward pass, update and masks."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ckasr import devices
from ckasr.data import Batch, Batches, Indices
from ckasr.methods import Context, Method, TrainingState
from ckasr.sparsity import prunable
from ckasr.tasks import CLASSIFICATION, Task
from ckasr.terms import Term


class Step:
    """A training step. It also sums the loss and the term over the steps of an epoch.

    ``_work`` contains only device operations, so that a CUDA graph can capture it
    (``captured.py``); host bookkeeping is outside of it. The sums are tensors on the device, so
    that the host does not wait for the device.

    Args:
        context: constant data of the run.
        state: state of the phase; its optimiser and its masks are used.
        method: the sparse-training method.
        term: the term that is added to the loss, or None.
        precision: ``fp32``; ``bf16``: forward and backward pass under autocast, with the term in
            float32; ``tf32``: convolutions on a GPU may round their factors to TF32, which is
            PyTorch's default.
        batches: the training batches.
    """

    def __init__(
        self,
        context: Context,
        state: TrainingState,
        method: Method,
        term: Term | None,
        precision: str,
        batches: Batches,
    ) -> None:
        self.context, self.state = context, state
        self.method = method
        self.term = term
        self.precision = precision
        self.batches = batches
        self.device = devices.of(context.model)
        self.loss_sum = torch.zeros((), device=self.device.place)
        self.term_sum = torch.zeros((), device=self.device.place)
        self.start_epoch()

    def start_epoch(self, number: int = 0) -> None:
        """Set the sums to zero and reset the term.

        Args:
            number: unique number of the epoch within the run. The random numbers of a term depend
                on it.
        """
        self.loss_sum.zero_()
        self.term_sum.zero_()
        self.steps = 0
        self.term_steps = 0
        self.gradient_ratio: Tensor | None = None
        if self.term is not None:
            self.term.reset(number)

    def __call__(self, indices: Indices) -> None:
        """Run one step on the batch of these indices."""
        with_term = self.term is not None and self.term.active
        if with_term and self.gradient_ratio is None:
            self._work(indices, with_term, compare=True)
        else:
            self._run(indices, with_term)
        self.steps += 1
        self.term_steps += with_term
        if self.term is not None:
            self.term.advance()
        self.state.step += 1
        self.method.after_step(self.context, self.state)

    def _run(self, indices: Indices, with_term: bool) -> None:
        self._work(indices, with_term)

    def _work(self, indices: Indices, with_term: bool, compare: bool = False) -> None:
        """Run all device operations of the step.

        Args:
            indices: indices of the batch.
            with_term: whether the term is added to the loss.
            compare: whether to compute the gradients of loss and term separately and to store the
                ratio of their norms.
        """
        context, state = self.context, self.state
        self.device.set_precision(self.precision)
        x, y = self.batches.batch(indices)
        with self.device.autocast(self.precision):
            outputs = context.model(x)
        loss = context.task.loss(outputs.float(), y)
        self.loss_sum += loss.detach()
        if (penalty := self.method.penalty(context, state)) is not None:
            loss = loss + penalty
        state.optimizer.zero_grad(set_to_none=True)
        if self.term is None or not with_term:
            loss.backward()
        else:
            weighted = self.term.compute()
            if (value := self.term.term) is not None:
                self.term_sum += value
            if compare:
                self.gradient_ratio = self._backward_compared(loss, weighted)
            else:
                (loss + weighted).backward()
        self.method.after_backward(context, state)
        state.optimizer.step()
        state.masks.apply(state.optimizer)

    def _backward_compared(self, loss: Tensor, weighted: Tensor) -> Tensor:
        """Run the backward passes of the loss and of the term, and return the ratio of their norms.

        The ratio is the norm of the term's gradient divided by the norm of the loss's gradient. The
        norms count kept weights only and, under DistributedDataParallel, the samples of this
        process only. Autograd accumulates the sum of both gradients as in a usual backward pass, so
        that DistributedDataParallel averages it over the processes.
        """
        parameters = [p for p in self.context.model.parameters() if p.requires_grad]
        of_loss = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        of_term = torch.autograd.grad(weighted, parameters, materialize_grads=True)
        torch.autograd.backward(parameters, [a + b for a, b in zip(of_loss, of_term, strict=True)])
        weights = prunable(self.context.model)
        by_weight = {id(weight): self.state.masks.get(name) for name, weight in weights.items()}
        masks = [by_weight.get(id(parameter)) for parameter in parameters]
        return _norm(of_term, masks) / _norm(of_loss, masks)


def _norm(gradients: Iterable[Tensor], masks: Iterable[Tensor | None]) -> Tensor:
    kept = [g if m is None else g * m for g, m in zip(gradients, masks, strict=True)]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(kept)))


def accuracy(
    model: nn.Module, batches: Iterable[Batch], precision: str, task: Task = CLASSIFICATION
) -> float:
    """Return the share of correct predictions in eval mode, from 0 to 1.

    Args:
        model: the model.
        batches: batches ``(x, y)`` on the device of the model.
        precision: precision as in ``Step``.
        task: task that defines which predictions are correct.
    """
    return queued_accuracy(model, batches, precision, task).item()


@torch.no_grad()
def queued_accuracy(
    model: nn.Module, batches: Iterable[Batch], precision: str, task: Task = CLASSIFICATION
) -> Tensor:
    """Return ``accuracy`` as a float64 scalar on the device, without waiting for the device."""
    training = model.training
    model.eval()
    device = devices.of(model)
    device.set_precision(precision)
    correct = torch.zeros((), dtype=torch.float64, device=device.place)
    count = 0
    for x, y in batches:
        with device.autocast(precision):
            correct += task.correct(model(x), y)
        count += y.numel()
    model.train(training)
    return correct / count
