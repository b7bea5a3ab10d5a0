"""Vision Transformers for small images (Dosovitskiy et al. 2020, arXiv 2010.11929, equations 1-4).

torchvision provides the networks, here with patches of 4x4 pixels (64 of them in an image of 32x32)
and self-attention written with ``nn.Linear``. `vit` has 6 layers and 2.7 million parameters.
`deit_tiny` has the 12 layers of DeiT-Ti (Touvron et al. 2020, arXiv 2012.12877, table 1), without
the distillation token, and 5.4 million parameters. Both have width 192 and 3 attention heads.

The test accuracies of these sizes after training on CIFAR from scratch are not known. ViT-Lite-6/4
of Hassani et al. 2021 (arXiv 2104.05704; github.com/SHI-Labs/Compact-Transformers), which is
similar to `vit` but has width 256, reaches 90.94 % on CIFAR-10 and 69.20 % on CIFAR-100 after 200
epochs with AdamW and strong augmentation. DeiT-Ti reaches 72.2 % on ImageNet with patches of 16x16
pixels (github.com/facebookresearch/deit).
"""

from functools import partial

from torch import Tensor, nn
from torch.nn import functional

from .registry import register

PATCH = 4
"""Height and width of a patch in pixels."""
WIDTH = 192
HEADS = 3


class Attention(nn.Module):
    """Multi-head self-attention that replaces ``nn.MultiheadAttention`` in torchvision's blocks.

    ``nn.MultiheadAttention`` does not call its projections as modules. Here the projections are
    ``nn.Linear`` modules, which sparsity reports, structured pruning and sparse execution support.

    Args:
        width: number of features per token.
        heads: number of attention heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        for projection in (self.query, self.key, self.value, self.output):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, None]:
        """Return the output of shape (n, tokens, width), and None instead of attention weights."""
        parts = self.query(query), self.key(key), self.value(value)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.output(mixed.transpose(1, 2).flatten(2)), None


def vision_transformer(
    num_classes: int, input_shape: tuple[int, int, int], *, depth: int
) -> nn.Module:
    """Build a Vision Transformer with ``depth`` layers, whose classifier reads the class token.

    Args:
        num_classes: number of logits.
        input_shape: (channels, height, width) of the images.
        depth: number of encoder layers.

    Raises:
        ValueError: for images that are not square or cannot be divided into patches.
    """
    from torchvision.models import VisionTransformer

    channels, height, width = input_shape
    if height != width or height % PATCH:
        raise ValueError(
            f"input_shape={input_shape}: a vision transformer cuts square images into patches of "
            f"{PATCH}x{PATCH} pixels, so height and width must be equal and a multiple of {PATCH}"
        )
    model = VisionTransformer(
        image_size=height,
        patch_size=PATCH,
        num_layers=depth,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        mlp_dim=4 * WIDTH,
        num_classes=num_classes,
    )
    model.conv_proj = nn.Conv2d(channels, WIDTH, PATCH, stride=PATCH)
    for block in model.encoder.layers:
        block.self_attention = Attention(WIDTH, HEADS)
    # As in DeiT. torchvision initialises the classifier with zeros, so that no other weight would
    # have a gradient, and methods that compute scores before training could not rank the weights.
    nn.init.trunc_normal_(model.class_token, std=0.02)
    nn.init.trunc_normal_(model.conv_proj.weight, std=0.02)
    nn.init.trunc_normal_(model.heads.head.weight, std=0.02)
    return model


register("vit")(partial(vision_transformer, depth=6))
register("deit_tiny")(partial(vision_transformer, depth=12))
