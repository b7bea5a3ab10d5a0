"""Training: the engine, its training step, and checkpoints."""

from .engine import DivergedError, Engine, Recipe
from .step import Step, accuracy

__all__ = ["DivergedError", "Engine", "Recipe", "Step", "accuracy"]
