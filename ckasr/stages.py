"""Find the repeated blocks of a network in its module tree, grouped by stage."""

from collections.abc import Iterator
from itertools import groupby, pairwise

from torch import nn

Named = tuple[str, nn.Module]
Stride = tuple[str, tuple[float, ...]]


class Stages(list[list[str]]):
    """Names of layers, one list per stage, as :func:`find_stages` returns them.

    :class:`ckasr.CKASR` checks these stages against the shapes of the first step, also if they are
    passed as ``stages=``. It does not check a plain list of lists, which is the caller's choice.
    """


def find_stages(model: nn.Module) -> Stages:
    """Return the names of the repeated (usually residual) blocks of a model, one list per stage.

    A *row* is a sequence of at least two modules of one class which have submodules. It is found
    inside a ``Sequential``, ``ModuleList`` or ``ModuleDict``, or inside a module whose children
    are numbered (``b1``, ``b2``, ...) and of one class. Nested ``Sequential`` modules count as one
    sequence. A stage is a part of a row with one resolution: a block with a stride starts a new
    stage. Stages with a single block are omitted.

    If the elements of a row consist of such rows, as the stages of a ConvNeXt or Swin Transformer
    do, the inner rows are returned. Otherwise the outer row is returned, and nothing inside it. No
    returned block is part of another one. Modules with a single weight each, such as a convolution
    with its norm, are blocks if two of them in one row have the same shapes, as in a VGG.

    If a network has no such stage and contains only linear layers, a chain of linear layers is one
    stage, whatever their widths: each element of the row has one linear layer, whose inputs are the
    outputs of the previous one.

    The module tree shows neither the order in which modules run nor the functional operations.
    The result may therefore be wrong, and :class:`ckasr.CKASR` checks it against the shapes of the
    first step.

    Args:
        model: the network, or the result of ``torch.compile`` for it.

    Raises:
        ValueError: if no stage is found, or if it is unclear which of two rows contains the blocks.
            The message lists the modules and explains how to name the layers.
    """
    model = getattr(model, "_orig_mod", model)  # the module inside a compiled model
    return _names(model, _pruned(model, _search("", model)) or _linear_chains(model))


def _names(model: nn.Module, stages: list[list[Named]]) -> Stages:
    if stages:
        return Stages([name for name, _ in stage] for stage in stages)
    composite = [(n, m) for n, m in model.named_children() if _composite(m)]
    seen = [f"{name} ({type(child).__name__})" for name, child in composite[:6]]
    example = [name for name, _ in composite[:2]] if len(composite) > 1 else ["...", "..."]
    raise ValueError(
        f"no stages of residual blocks found in {type(model).__name__}; it holds "
        f"{', '.join(seen) or 'no composite module'}{', ...' if len(composite) > 6 else ''}. "
        f"Name the layers, CKASR(model, stages=[{example}]), one list for each resolution, or "
        "layers=[...], which groups them by resolution"
    )


def _search(name: str, module: nn.Module) -> list[list[Named]]:
    """Return the stages below a module, in the order of its children."""
    found: list[list[Named]] = []
    for run in _runs(name, module):
        below = [_search(*element) for element in run]
        stages = _split(run) if len(run) > 1 else []
        if not stages or _holds_blocks(run, below):
            stages = [stage for part in below for stage in part]
        found += stages
    return found


def _runs(name: str, module: nn.Module) -> Iterator[list[Named]]:
    """Yield the children of a module in groups: in a sequence, adjacent children of one class."""
    children = list(_children(name, module))
    if _is_sequence(module):
        for _, group in groupby(
            children, key=lambda child: (type(child[1]), _may_be_block(child[1]))
        ):
            run = list(group)
            yield from [run] if _may_be_block(run[0][1]) else ([child] for child in run)
    else:
        yield from ([child] for child in children)


def _children(name: str, module: nn.Module) -> Iterator[Named]:
    """Yield named children; a Sequential inside a Sequential is replaced by its own children."""
    for key, child in module.named_children():
        path = f"{name}.{key}" if name else key
        if _is_chain(module) and _is_chain(child):
            yield from _children(path, child)
        else:
            yield path, child


def _is_chain(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _is_sequence(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return True
    children = dict(module.named_children())
    stems = {key.rstrip("0123456789") for key in children}
    numbered = all(key[-1].isdigit() for key in children)
    return (
        len(children) > 1 and numbered and len(stems) == len({*map(type, children.values())}) == 1
    )


def _composite(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _may_be_block(module: nn.Module) -> bool:
    """Return whether a module can be a block. A plain container cannot: it has no skip."""
    return _composite(module) and not _is_container(module) and _weights(module) > 0


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) and (
        type(module).forward in (nn.Sequential.forward, nn.Module.forward)
    )


def _weights(module: nn.Module) -> int:
    """Return the number of weight matrices and kernels in a module."""
    own = (p for m in module.modules() for p in m.parameters(recurse=False))
    return sum(parameter.dim() > 1 for parameter in own)


def _split(run: list[Named]) -> list[list[Named]]:
    """Split a row before every block that lowers the resolution; omit parts with a single block.

    A convolutional block lowers the resolution if it has a stride. A block with linear layers can
    also have a stride inside its attention, at the same place in every block, which does not change
    the resolution of the block. Such a block lowers the resolution if it has a stride that the
    previous block does not have, or if its width changes.
    """
    stages: list[list[Named]] = []
    before: set[Stride] = set()
    width = None
    for name, block in run:
        strides, last_width = _strides(block), width
        width = [p for p in block.parameters() if p.dim() > 1][-1].shape[0]
        if any(isinstance(module, nn.Linear) for module in block.modules()):
            lowers = bool(strides - before) or width != last_width
        else:
            lowers = bool(strides)
        if not stages or lowers:
            stages.append([])
        stages[-1].append((name, block))
        before = strides
    return [stage for stage in stages if len(stage) > 1]


def _linear_chains(model: nn.Module) -> list[list[Named]]:
    """Return chains of linear layers; an empty list if the model has other weights."""
    linear = sum(isinstance(module, nn.Linear) for module in model.modules())
    return _chains_below("", model) if linear == _weights(model) else []


def _chains_below(name: str, module: nn.Module) -> list[list[Named]]:
    found: list[list[Named]] = []
    for run in _runs(name, module):
        if len(run) > 1 and _feed_each_other(run):
            found.append(run)
        else:
            found += [chain for element in run for chain in _chains_below(*element)]
    return found


def _feed_each_other(run: list[Named]) -> bool:
    """Return whether each element has one linear layer that can read the previous one's output."""
    if any(_weights(element) != 1 for _, element in run):
        return False
    layers = [m for _, element in run for m in element.modules() if isinstance(m, nn.Linear)]
    return all(a.out_features == b.in_features for a, b in pairwise(layers))


def _strides(block: nn.Module) -> set[Stride]:
    """Return the names, inside a block, of layers whose stride is not 1, with these strides.

    A layer has a stride if it has the attribute ``stride``, which custom layers have too.
    Upsampling layers also change the resolution; they have the attribute ``scale_factor``.
    """
    found: set[Stride] = set()
    for name, layer in block.named_modules():
        for attribute in ("stride", "scale_factor"):
            value = getattr(layer, attribute, None)
            steps = tuple(value) if isinstance(value, tuple | list) else (value,)
            numbers = all(isinstance(step, int | float) for step in steps)
            if numbers and not _composite(layer) and any(step != 1 for step in steps):
                found.add((name, steps))
    return found


def _holds_blocks(run: list[Named], below: list[list[list[Named]]]) -> bool:
    """Return whether the elements of a row are stages that consist of blocks, and not blocks.

    An element is a stage if it has containers of equal blocks in two places, like a network in an
    ensemble, or if one such container holds most of its parameters. If the elements are equal to
    each other, like the layers of a transformer, the container must hold all parameters of the
    element, so that a list of attention heads or experts is not taken for blocks.

    Rows of single layers (convolution and norm) are the inside of a block if the block contains
    anything else.
    """
    share = 0.99 if _repeats(run) else 0.5
    for (name, element), stages in zip(run, below, strict=True):
        rows = [row for row in stages if _repeats(row) and _fills(row, name, element)]
        units = [row for row in rows if _weights(row[0][1]) < 2]
        blocks = [row for row in rows if _weights(row[0][1]) >= 2]
        if len(blocks) > 1 or (blocks and _share(blocks, element) >= share):
            return True
        if units and not blocks and _share(units, element) == 1 and _fanout(element) == 1:
            if _fanout(units[0][0][1]) > 1:
                raise ValueError(
                    f"it is unclear whether {name!r} ({type(element).__name__}) or "
                    f"{units[0][0][0]!r} ({type(units[0][0][1]).__name__}) is the block: name "
                    f"the layers, CKASR(model, stages=[[{name!r}, ...]]), one list per resolution"
                )
            return True
    return False


def _fanout(module: nn.Module) -> int:
    return sum(1 for _ in module.children())


def _fills(row: list[Named], name: str, element: nn.Module) -> bool:
    """Return whether the container of a row, inside ``element``, has modules of one class only."""
    container = row[0][0].rpartition(".")[0].removeprefix(name).removeprefix(".")
    return len({type(child) for child in element.get_submodule(container).children()}) == 1


def _repeats(row: list[Named]) -> bool:
    """Return whether two blocks of a row have parameters of the same shapes."""
    shapes = [tuple(p.shape for p in block.parameters()) for _, block in row]
    return len(set(shapes)) < len(shapes)


def _share(rows: list[list[Named]], element: nn.Module) -> float:
    """Return the share of a module's parameters that are in these rows."""
    inside = {p for row in rows for _, block in row for p in block.parameters()}
    total = sum(p.numel() for p in element.parameters())
    return sum(p.numel() for p in inside) / total


def _pruned(model: nn.Module, stages: list[list[Named]]) -> list[list[Named]]:
    """Remove rows that are inside a block, and rows of single layers that are not blocks.

    If modules with a single layer are blocks in one row, they are blocks in all rows of their
    class: the first stages of a VGG have two layers each, of which the first has another number of
    inputs. A block can be alone in one place and in a row in another; in both places, the rows
    inside it are removed.
    """
    classes = {
        type(row[0][1])
        for row in stages
        if _weights(row[0][1]) > 1 or _units_are_blocks(model, row)
    }
    stages = [row for row in stages if type(row[0][1]) in classes]
    blocks = tuple(f"{name}." for name, m in model.named_modules() if name and type(m) in classes)
    return [row for row in stages if not row[0][0].startswith(blocks)]


def _units_are_blocks(model: nn.Module, row: list[Named]) -> bool:
    """Return whether modules with a single layer each are blocks, and not the inside of a block.

    They are blocks if they are repeated and the module that contains them is not a block. That
    module is a block if the model has several of its class, unless it contains nothing else.
    """
    name = row[0][0].rpartition(".")[0]
    while name and _is_container(model.get_submodule(name)):
        name = name.rpartition(".")[0]
    owner = model.get_submodule(name)
    alone = sum(type(module) is type(owner) for module in model.modules()) == 1
    return _repeats(row) and (alone or not name or _fanout(owner) == 1)
