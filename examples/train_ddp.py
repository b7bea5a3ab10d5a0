"""Train a sparse network with CKA-SR in several processes with DistributedDataParallel.

    torchrun --standalone --nproc-per-node 2 examples/train_ddp.py      # scikit-learn's digits
    torchrun --standalone --nproc-per-node 8 examples/train_ddp.py \\
        --data imagenet --model resnet50 --beta 1e-5 --epochs 100 --batch-size 1024

There is one process per GPU, or per core without a GPU. Every process has the same masks and takes
its share of each batch. It computes the term on samples of its own share, and DDP averages the
gradients of the processes, so the term is the mean of the processes' terms. At the end the script
compares the weights of all processes, which must be equal.
"""

import argparse
import os

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import ckasr


def train(args: argparse.Namespace, rank: int, world: int, device: torch.device) -> float:
    """Train one network; returns its test accuracy in [0, 1], which all processes have."""
    dataset = ckasr.data.load(args.data)
    samples = torch.arange(len(dataset.train_labels))
    training = dataset.train_batches(samples, batch_size=args.batch_size, device=device)
    torch.manual_seed(0)
    model = ckasr.models.create(
        args.model,
        num_classes=dataset.num_classes,
        input_shape=tuple(dataset.example_input.shape[1:]),
        **dataset.model_options,
    ).to(device)
    shapes = {name: tuple(w.shape) for name, w in ckasr.sparsity.prunable(model).items()}
    densities = ckasr.sparsity.layer_densities(shapes, 1 - args.sparsity, "erk")
    masks = ckasr.sparsity.Masks(model, ckasr.sparsity.random_masks(shapes, densities, seed=0))
    masks.apply()

    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(
        parallel.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    reg = ckasr.CKASR(model, beta=args.beta) if args.beta else None

    for epoch in range(args.epochs):
        parallel.train()
        for indices in training.batch_indices(epoch):
            x, y = training.batch(tuple(numbers[rank::world] for numbers in indices))
            loss = cross_entropy(parallel(x), y)
            if reg is not None:
                loss = loss + reg()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            masks.apply(optimizer)  # pruned weights, and their momentum, stay zero
        scheduler.step()

    for name, weight in model.named_parameters():
        expected = weight.detach().clone()
        dist.broadcast(expected, src=0)
        if not torch.equal(weight, expected):
            raise RuntimeError(f"{name} differs between process 0 and process {rank}")

    model.eval()
    counts = torch.zeros(2, dtype=torch.float64, device=device)  # correct predictions, samples
    batches = enumerate(dataset.test_batches(batch_size=125, device=device).in_order())
    with torch.no_grad():
        for x, y in (batch for number, batch in batches if number % world == rank):
            counts += torch.tensor([(model(x).argmax(1) == y).sum(), len(y)], device=device)
    dist.all_reduce(counts)
    return (counts[0] / counts[1]).item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="a data set of ckasr.data")
    parser.add_argument("--model", default="resnet20", help="a model of ckasr.models")
    parser.add_argument("--sparsity", type=float, default=0.95, help="share of zero weights")
    parser.add_argument("--beta", type=float, default=1e-4, help="weight of CKA-SR; 0: baseline")
    parser.add_argument("--epochs", type=int, default=10, help="passes over the training samples")
    parser.add_argument("--batch-size", type=int, default=128, help="samples of all processes")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error("start it with torchrun, as the first lines of this file show")
    gpu = torch.cuda.is_available()
    place = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if gpu else "cpu")
    dist.init_process_group("nccl" if gpu else "gloo")
    accuracy = train(options, dist.get_rank(), dist.get_world_size(), place)
    if dist.get_rank() == 0:
        print(f"test accuracy {accuracy:.2%}, {dist.get_world_size()} processes")
    dist.destroy_process_group()
