"""One optimiser step: batch, forward, loss, term, backward, update, masks."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ckasr import devices
from ckasr.data import Batches, Plan
from ckasr.methods import Context, Method, TrainingState
from ckasr.sparsity import prunable
from ckasr.terms import Term


class Step:
    """A training step, and what is summed over an epoch of them.

    Called with a slice of the epoch's plan. What the device does (``_work``) is apart from what the
    host does, so that a CUDA graph can hold the one (``captured.py``). Sums stay on the device: no
    step waits for it. precision: ``"bf16"`` runs forward and backward under autocast (the
    added term stays in float32); ``"tf32"`` lets a GPU's convolutions round their factors to TF32,
    which is PyTorch's own default; ``"fp32"`` does neither.
    """

    def __init__(
        self,
        context: Context,
        state: TrainingState,
        method: Method,
        regularizer: Term | None,
        precision: str,
        batches: Batches,
    ) -> None:
        self.context, self.state = context, state
        self.method = method
        self.regularizer = regularizer
        self.precision = precision
        self.batches = batches
        self.device = devices.of(context.model)
        self.loss_sum = torch.zeros((), device=self.device.place)
        self.term_sum = torch.zeros((), device=self.device.place)
        self.start_epoch()

    def start_epoch(self, number: int = 0) -> None:
        """Begin an epoch. number: one that no other epoch of the run has; random terms read it."""
        self.loss_sum.zero_()
        self.term_sum.zero_()
        self.steps = 0
        self.term_steps = 0
        self.gradient_ratio: Tensor | None = None
        if self.regularizer is not None:
            self.regularizer.reset(number)

    def __call__(self, draws: Plan) -> None:
        due = self.regularizer is not None and self.regularizer.due
        if due and self.gradient_ratio is None:
            self._work(draws, due, apart=True)
        else:
            self._run(draws, due)
        self.steps += 1
        self.term_steps += due
        if self.regularizer is not None:
            self.regularizer.advance()
        self.state.step += 1
        self.method.after_step(self.context, self.state)

    def _run(self, draws: Plan, due: bool) -> None:
        self._work(draws, due)

    def _work(self, draws: Plan, due: bool, apart: bool = False) -> None:
        """All of the step that the device does. due: with the term; apart: the gradients of loss
        and term one after the other, to compare them."""
        context, state = self.context, self.state
        self.device.set_precision(self.precision)
        x, y = self.batches.batch(*draws)
        with self.device.autocast(self.precision):
            logits = context.model(x)
        loss = nn.functional.cross_entropy(logits.float(), y)
        self.loss_sum += loss.detach()
        if (penalty := self.method.penalty(context, state)) is not None:
            loss = loss + penalty
        state.optimizer.zero_grad(set_to_none=True)
        weighted = None
        if due:
            weighted = self.regularizer.compute()
            self.term_sum += self.regularizer.term
        if apart:
            self.gradient_ratio = self._backward_apart(loss, weighted)
        else:
            (loss if weighted is None else loss + weighted).backward()
        self.method.after_backward(context, state)
        state.optimizer.step()
        state.masks.apply(state.optimizer)

    def _backward_apart(self, loss: Tensor, weighted: Tensor) -> Tensor:
        """Backward of both parts; returns the norm of the term's gradient over that of the rest.

        Only kept weights count in the norms, and under DistributedDataParallel only the samples of
        this process. The sum of the two goes through autograd's own accumulation, as in a plain
        backward pass, so that DistributedDataParallel averages it over the processes.
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


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str) -> float:
    """Top-1 accuracy in [0, 1] over ``(x, y)`` batches, in eval mode."""
    return queued_accuracy(model, batches, precision).item()


@torch.no_grad()
def queued_accuracy(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str
) -> Tensor:
    """The same, float64 and 0-dim, on the device and not waited for."""
    training = model.training
    model.eval()
    device = devices.of(model)
    device.set_precision(precision)
    correct = torch.zeros((), dtype=torch.float64, device=device.place)
    count = 0
    for x, y in batches:
        with device.autocast(precision):
            correct += (model(x).argmax(1) == y).sum()
        count += len(y)
    model.train(training)
    return correct / count
