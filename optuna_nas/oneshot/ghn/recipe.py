"""How a GHN is made and learns."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from optuna_nas.oneshot.ghn.propagation import PROPAGATIONS
from optuna_nas.training.recipe import PRECISIONS


@dataclass(frozen=True)
class GHNRecipe:
    """What a GHN is made of and how it learns. The defaults are the paper's where it gives them (5.1.1).

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
        layer_norm: Normalise embeddings before they are decoded (GHN-2).
        fan_in_normalization: Divide generated weights by the root of half their fan-in (GHN-2); for networks without
            norms.
        meta_batch: Architectures a step, all on the same images.
        batch_size: Images a step.
        scoring_images: Images of the report split that an architecture is scored on, all at once: more of them tell
            good ones apart better, and cost in proportion.
        learning_rate: Of Adam; falls to 0 along a cosine.
        weight_decay: L2 penalty.
        clip_norm: Largest norm of the gradient; 0 for no clipping.
        precision: Of the generated networks: `auto` (bfloat16 where a GPU supports it), `float32` or `bfloat16`.
        seed: Initial weights, order of images, augmentation, architectures.

    Raises:
        ValueError: A field is out of range.
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
    layer_norm: bool = False
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
        for field in fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if kind is float and not isinstance(value, bool) and isinstance(value, int | float):
                continue
            if type(value) is not kind:
                raise ValueError(f"`{field.name}` must be of type {kind.__name__} but got {value!r}.")
        for name in ("hidden", "decoder_hidden", "chunk", "phases", "meta_batch", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1 but got {getattr(self, name)}.")
        if self.scoring_images < 2:
            raise ValueError(
                f"`scoring_images` must be at least 2, for statistics of a batch, but got {self.scoring_images}."
            )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"`learning_rate` must be positive and finite but got {self.learning_rate}.")
        for name in ("weight_decay", "clip_norm", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must not be negative but got {getattr(self, name)}.")
        for name, known in (("propagation", PROPAGATIONS), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {known} but got {getattr(self, name)!r}.")
