"""lnflax: which few parameters of a pretrained transformer are worth tuning, as a grid in JAX/Flax."""
