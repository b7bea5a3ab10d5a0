"""Benchmarks: each measures this package and a plain implementation in turn, in one run."""

WHAT = {
    "term": "One training step on a batch of 128 images at sparsity 0.95, with and without the "
    "term: float32 on a CPU, bf16 on a GPU; the mean over a cycle of five steps where the term "
    "reads 8 samples.",
    "step": "One training step on a batch of 128 augmented images at sparsity 0.95, in a process "
    "of one thread.",
    "data": "One batch of 128 augmented images.",
    "epoch": "One pass over 12,800 training images (an epoch of CIFAR has 50,000) at sparsity "
    "0.95, and the evaluation of 2,000 images after it; time per model.",
    "import": "The start of one process.",
    "scaling": "Forward and backward pass of the term: alone, on 8 samples of the given number of "
    "layers and on the given number of samples of 9 layers; and what it adds to a network of 9 "
    "layers at the given batch size. The ends of each curve; the figure shows the rest.",
    "shrink": "Inference on one batch in float32.",
    "structured": "Inference on one batch in float32, before and after filter pruning.",
    "sparse": "One training step on a batch of 128 augmented images in float32; for evaluation, "
    "5,000 images.",
}
"""What one time of each benchmark is the time of, at the default sizes."""
NAMES = tuple(WHAT)
MODULES = {"import": "imports"}
"""Modules that cannot have the name of their benchmark."""
ON_CPU = ("sparse",)
"""Benchmarks that run on the CPU whatever the device is."""
COUNTED = (
    "Multiply-adds: of convolutions and linear layers, forward and backward; of sparse execution, "
    "of the weights that its kernels visit. Planes: channels of a whole batch that are computed. "
    "MB: an estimate from the kernels' plans; every plane, its borders included, counts once for "
    "each kernel that reads or writes it, however many weights use it. Pooling, loss, optimiser "
    "and augmentation are not counted. Floor: the time that these bytes take at the speed, "
    "measured beside it, at which one thread copies an array that no cache holds."
)
"""How the columns of `Timing.work` are counted."""
