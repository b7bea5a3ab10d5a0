"""A batch of 128 augmented images: ours, and torchvision's transforms on PIL images.

Images are random bytes in CIFAR's shape: the cost does not depend on what they show.
"""

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ckasr.data import Batches

from .timing import Timing, interleaved

IMAGES = 12_800
MEAN, STD = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)


def measure(device: torch.device, rounds: int) -> list[Timing]:
    """Random crop after padding, flip, normalisation; in the main process."""
    images, labels = random_images()
    ours = Batches(
        images, labels, mean=MEAN, std=STD, batch_size=128, augment="crop-flip", device=device
    )
    plan = ours.plan(0)
    draws = [part[:128] for part in plan]
    loader = DataLoader(pil_dataset(), batch_size=128, shuffle=True)
    batches = iter(loader)

    def pil() -> None:
        nonlocal batches
        if next(batches, None) is None:
            batches = iter(loader)

    variants = {"torchvision on PIL images": pil, "ckasr": lambda: ours.batch(*draws)}
    return interleaved("data", variants, rounds=10 * rounds, device=device)


def random_images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (IMAGES, 32, 32, 3)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return images, torch.randint(0, 100, (IMAGES,), generator=generator)


def pil_dataset() -> Dataset:
    """The images behind torchvision's transforms, as in its CIFAR data sets."""
    from PIL import Image
    from torchvision import transforms

    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    images, labels = random_images()

    class Images(Dataset):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return transform(Image.fromarray(images[index].numpy())), int(labels[index])

    return Images()
