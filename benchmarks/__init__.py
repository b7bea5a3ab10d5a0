"""Benchmarks: each measures ours beside a plain implementation, interleaved in one run."""

NAMES = ("term", "step", "data", "epoch", "import", "scaling", "shrink", "sparse")
MODULES = {"import": "imports"}
"""Modules that cannot be named as their benchmark is."""
ON_CPU = ("sparse",)
"""Benchmarks that are measured on the CPU whatever the device is."""
COUNTED = (
    "Multiply-adds: of convolutions and linear layers, forward and backward; of sparse execution, "
    "of the weights that its kernels visit. Planes: channels of a whole batch that are computed. "
    "MB: an estimate from the kernels' plans; every plane, its borders included, counts once for "
    "each kernel that reads or writes it, however many weights use it. Pooling, loss, optimiser "
    "and augmentation are not counted. Floor: the time that these bytes take at the speed, "
    "measured beside it, at which one thread copies an array that no cache holds."
)
"""How the columns of `Timing.work` are counted."""
