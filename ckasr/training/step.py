"""One optimiser step: forward, loss, CKA-SR, backward, update, masks."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ckasr.methods import Context, Method
from ckasr.regularizer import CKASR


class Step:
    """A training step, and what is summed over an epoch of them.

    Sums stay on the device, so that no step waits for the host. precision: ``"bf16"`` runs forward
    and backward under autocast (the CKA-SR term stays in float32), ``"fp32"`` does not.
    """

    def __init__(
        self, context: Context, method: Method, regularizer: CKASR | None, precision: str
    ) -> None:
        self.context = context
        self.method = method
        self.regularizer = regularizer
        self.bf16 = precision == "bf16"
        self.device = next(context.model.parameters()).device
        self.start_epoch()

    def start_epoch(self) -> None:
        self.loss_sum = torch.zeros((), device=self.device)
        self.term_sum = torch.zeros((), device=self.device)
        self.steps = 0
        self.term_steps = 0
        self.gradient_ratio: Tensor | None = None
        if self.regularizer is not None:
            self.regularizer.reset()

    def __call__(self, x: Tensor, y: Tensor) -> None:
        context = self.context
        due = self.regularizer is not None and self.regularizer.due
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = context.model(x)
        loss = nn.functional.cross_entropy(logits.float(), y)
        self.loss_sum += loss.detach()
        self.steps += 1
        if (penalty := self.method.penalty(context)) is not None:
            loss = loss + penalty
        context.optimizer.zero_grad(set_to_none=True)
        weighted = self.regularizer() if self.regularizer is not None else None
        if due:
            self.term_sum += self.regularizer.term
            self.term_steps += 1
        if due and self.gradient_ratio is None:
            self.gradient_ratio = self._backward_apart(loss, weighted)
        else:
            (loss if weighted is None else loss + weighted).backward()
        self.method.after_backward(context)
        context.optimizer.step()
        context.masks.apply(context.optimizer)
        context.step += 1
        self.method.after_step(context)

    def _backward_apart(self, loss: Tensor, weighted: Tensor) -> Tensor:
        """Backward of both parts; returns the norm of CKA-SR's gradient over that of the rest."""
        parameters = [p for p in self.context.model.parameters() if p.requires_grad]
        of_loss = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
        of_term = torch.autograd.grad(weighted, parameters, materialize_grads=True)
        for parameter, a, b in zip(parameters, of_loss, of_term, strict=True):
            parameter.grad = a + b
        return _norm(of_term) / _norm(of_loss)


def _norm(gradients: Iterable[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: str) -> float:
    """Top-1 accuracy in [0, 1] over ``(x, y)`` batches, in eval mode."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    correct = torch.zeros((), dtype=torch.int64, device=device)
    count = 0
    for x, y in batches:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            correct += (model(x).argmax(1) == y).sum()
        count += len(y)
    model.train(training)
    return correct.item() / count
