"""Benchmarks that measure this package and a plain implementation alternately, in one run."""

WHAT = {
    "term": "One training step on a batch of 128 images at sparsity 0.95, with and without the "
    "term, in float32 on a CPU and in bf16 on a GPU. With 8 samples, the time is the mean over a "
    "cycle of five steps.",
    "step": "One training step on a batch of 128 augmented images at sparsity 0.95, in a process "
    "of one thread.",
    "data": "One batch of 128 augmented images.",
    "epoch": "One pass over 12,800 training images (an epoch of CIFAR has 50,000) at sparsity "
    "0.95, followed by an evaluation of 2,000 images; time per model.",
    "import": "The start of one process.",
    "scaling": "Forward and backward pass of the term. It is measured alone, for the given number "
    "of layers (8 samples) and for the given number of samples (9 layers), and as the additional "
    "time in a network of 9 layers for the given batch size. The table has the first and the last "
    "point of each curve; the figure shows all points.",
    "shrink": "Inference on one batch in float32.",
    "structured": "Inference on one batch in float32, before and after filter pruning.",
    "sparse": "One training step on a batch of 128 augmented images in float32; for evaluation, "
    "5,000 images.",
}
"""What each benchmark measures, with the default sizes."""
NAMES = tuple(WHAT)
MODULES = {"import": "imports"}  # benchmarks whose module has another name
COUNTED = (
    "Multiply-adds are those of convolutions and linear layers, forward and backward; for sparse "
    "execution, those of the weights that the kernels use. Planes are the computed channels of a "
    "whole batch. MB is an estimate from the plans of the kernels: every plane, including its "
    "borders, counts once for each kernel that reads or writes it, for any number of weights. "
    "Pooling, loss, optimiser and augmentation are not counted. Floor is the time to move these "
    "bytes at the speed at which one thread copies an array that is larger than the caches; this "
    "speed is measured in the same run."
)
"""Explanation of the columns of `Timing.work`."""
