"""A Transformer encoder that classifies texts."""

import torch
from torch import Tensor, nn

from .registry import register

PADDING = 0
"""Token that fills the positions after the end of a text."""


class EncoderBlock(nn.Module):
    """A pre-norm block of self-attention and a two-layer network (Xiong et al. 2020, figure 1b).

    The output is zero after the end of a text, so the number of padding tokens does not change the
    similarity of two layers.

    Args:
        width: number of features per token.
        heads: number of attention heads.
        hidden: width of the hidden layer.
    """

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        h = self.norm1(x)
        x = x + self.attention(h, h, h, key_padding_mask=padding, need_weights=False)[0]
        x = x + self.mlp(self.norm2(x))
        return x.masked_fill(padding[..., None], 0)


class TextTransformer(nn.Module):
    """A Transformer encoder that classifies texts.

    It consists of token and position embeddings, ``depth`` blocks, a layer norm, the mean over the
    tokens of a text, and a linear layer. The input is an int64 tensor of tokens with shape
    (n, at most length), padded with 0. The output are logits (n, num_classes). The first token of a
    text must not be padding.

    Args:
        num_classes: number of classes.
        length: number of tokens per text.
        vocabulary: number of different tokens.
        depth: number of blocks.
        width: number of features per token.
        heads: number of attention heads.
    """

    def __init__(
        self,
        num_classes: int,
        length: int,
        vocabulary: int,
        *,
        depth: int = 4,
        width: int = 128,
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.blocks = nn.ModuleList(EncoderBlock(width, heads, 4 * width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, num_classes)
        nn.init.normal_(self.embedding.weight, std=0.02)
        with torch.no_grad():
            self.embedding.weight[PADDING] = 0

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == PADDING
        kept = ~padding[..., None]
        x = (self.embedding(tokens) + self.position[: tokens.shape[1]]) * kept
        for block in self.blocks:
            x = block(x, padding)
        mean = (self.norm(x) * kept).sum(1) / kept.sum(1).clamp(min=1)
        return self.fc(mean)


@register("text_transformer")
def text_transformer(
    num_classes: int, input_shape: tuple[int, ...], *, vocabulary: int
) -> TextTransformer:
    """Build an encoder of four blocks of width 128 with four attention heads.

    It has about 0.8 million weights without the embeddings. No accuracy of a network of this size
    that was trained from scratch is published.

    Args:
        num_classes: number of logits.
        input_shape: (length,), the number of tokens per text.
        vocabulary: number of different tokens.

    Raises:
        ValueError: if ``input_shape`` has more than one dimension.
    """
    if len(input_shape) != 1:
        raise ValueError(f"input_shape={input_shape} must be (length,): the model reads tokens")
    return TextTransformer(num_classes, input_shape[0], vocabulary)
