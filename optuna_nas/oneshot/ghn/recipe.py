"""How a GHN is made and learns."""

from __future__ import annotations

from dataclasses import dataclass

from optuna_nas.oneshot.ghn.propagation import PROPAGATIONS
from optuna_nas.training.recipe import PRECISIONS
from optuna_nas.training.rules import Rule, at_least, check_fields, flag, not_negative, one_of, positive

NETWORK, NODE, NONE = NORMALIZATIONS = ("network", "node", "none")
RULES: dict[str, Rule] = {
    "hidden": at_least(1),
    "decoder_hidden": at_least(1),
    "chunk": at_least(1),
    "propagation": one_of(PROPAGATIONS),
    "phases": at_least(1),
    "pass_embedding": flag(),
    "share_parameters": flag(),
    "virtual_edges": flag(),
    "shape_embedding": flag(),
    "normalization": one_of(NORMALIZATIONS),
    "freeze_fraction": one_of((0, 1)),
    "fan_in_normalization": flag(),
    "meta_batch": at_least(1),
    "batch_size": at_least(1),
    "scoring_images": at_least(2),
    "learning_rate": positive(),
    "weight_decay": not_negative(),
    "clip_norm": not_negative(),
    "precision": one_of(PRECISIONS),
    "seed": at_least(0),
}


@dataclass(frozen=True)
class GHNRecipe:
    """What a GHN is made of and how it learns.

    The defaults are the paper's (section 5.1.1) where it gives them, but for `freeze_fraction`, which is 0 there, and
    `normalization`, of which it does not speak.

    The paper leaves learning rate, batch and clipping to an appendix; those are the public GHN-1's (Knyazev et al.).

    Args:
        hidden: Size of a node's embedding, of the GRU and of the message MLP.
        decoder_hidden: Size of the decoder's hidden layer.
        chunk: Channels, out and in, of one generated piece of a kernel.
        propagation: `forward_backward` (section 4.4) or `synchronous`.
        phases: T: propagations there and back, or synchronous steps.
        pass_embedding: Send the mean embedding of a module to the modules that read it (section 4.3), so that copies of
            a cell get weights of their own.
        share_parameters: All modules are propagated by the same weights (Table 5); else each by its own.
        virtual_edges: Messages along paths of up to 50 edges, divided by their length (GHN-2).
        shape_embedding: Add learned embeddings of channels, height and stride to a node's one-hot op (GHN-2).
        normalization: What embeddings are normalised over before they are decoded: `network` (all nodes of a network,
            each feature by itself), so that weights differ between networks and not only between ops; `node` (all
            features of a node, GHN-2); or `none`.
        freeze_fraction: 1: kernels of fixed parts, such as stem and reductions, are random and stay so, and are not
            generated: generated ones solve the task without what is chosen. 0: all are generated, as in the paper.
        fan_in_normalization: Divide generated weights by the root of half their fan-in (GHN-2); for networks without
            norms.
        meta_batch: Architectures a step, all on the same images.
        batch_size: Images a step.
        scoring_images: Images of the report split that an architecture is scored on, all at once: more of them tell
            good ones apart better, and cost in proportion.
        learning_rate: Learning rate of Adam; falls to 0 along a cosine.
        weight_decay: L2 penalty.
        clip_norm: Largest norm of the gradient; 0 for no clipping.
        precision: Precision of the generated networks: `auto` (bfloat16 where a GPU supports it), `float32` or
            `bfloat16`.
        seed: Initial weights, order of images, augmentation, architectures.

    Raises:
        ValueError: A field is out of range.

    Example:
        >>> from optuna_nas import GHNRecipe
        >>> GHNRecipe(phases=1, meta_batch=4).propagation
        'forward_backward'
    """

    hidden: int = 32
    decoder_hidden: int = 64
    chunk: int = 16
    propagation: str = "forward_backward"
    phases: int = 5
    pass_embedding: bool = True
    share_parameters: bool = True
    virtual_edges: bool = False
    shape_embedding: bool = False
    normalization: str = "network"
    freeze_fraction: float = 1.0
    fan_in_normalization: bool = False
    meta_batch: int = 1
    batch_size: int = 64
    scoring_images: int = 512
    learning_rate: float = 1e-3
    weight_decay: float = 1e-5
    clip_norm: float = 5.0
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self, RULES)
