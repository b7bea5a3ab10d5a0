"""Time of a batch of 128 augmented images: this package and torchvision's transforms on PIL images.

The images are random bytes in the shape of CIFAR images. The cost does not depend on their content.
"""

from itertools import chain, repeat

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ckasr.data import ImageBatches

from .timing import Timing, interleaved

IMAGES = 12_800
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


def measure(device: torch.device, rounds: int, images: int = IMAGES) -> list[Timing]:
    """Time a random crop after padding, a random flip and normalisation, in the main process.

    The number of rounds is multiplied by ten, because a batch takes only milliseconds.
    """
    ours = batches(images, device)
    indices = next(ours.batch_indices(0))
    loader = DataLoader(pil_dataset(images), batch_size=128, shuffle=True, drop_last=True)
    pil = chain.from_iterable(repeat(loader))
    variants = {"torchvision on PIL images": pil.__next__, "ckasr": lambda: ours.batch(indices)}
    return interleaved("data", variants, rounds=10 * rounds, device=device, images=128)


def random_images(count: int) -> tuple[Tensor, Tensor]:
    """Random images (count, 32, 32, 3) of type uint8, and labels (count,) of 100 classes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 100, (count,), generator=generator)


def batches(
    count: int, device: torch.device, batch_size: int = 128, augment: str = "crop-flip"
) -> ImageBatches:
    """Batches of ``count`` random images on the device."""
    how = {"batch_size": batch_size, "augment": augment, "device": device}
    return ImageBatches(*random_images(count), mean=MEAN, std=STD, **how)


def pil_dataset(count: int, augment: bool = True) -> Dataset:
    """A data set of ``count`` normalised images (3, 32, 32) and labels, with torchvision."""
    from PIL import Image
    from torchvision import transforms

    moves = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
    scaling = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    transform = transforms.Compose([*moves, *scaling] if augment else scaling)
    images, labels = random_images(count)

    class Images(Dataset):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return transform(Image.fromarray(images[index].numpy())), int(labels[index])

    return Images()
