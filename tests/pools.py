"""A sampler of a pool for tests: nothing at random, one seed."""

from optuna_nas import GHNSampler
from optuna_nas.storage.artifacts import folder_store


def pool_of(folder, space, score, **arguments):
    """Return a sampler that hands a pool out in the order of a score."""
    arguments = {"exploration": 0.0, "seed": 0, **arguments}
    return GHNSampler(space, score=score, artifact_store=folder_store(folder), **arguments)
