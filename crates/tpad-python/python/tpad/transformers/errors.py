"""What can go wrong between transformers and a daemon, beside the client's own errors."""


class UnsupportedFamily(ValueError):
    """The model's type has no served form."""


class UnsupportedWeights(ValueError):
    """A tensor is stored in a way that is not understood here."""


class MissingWeights(ValueError):
    """The published model lacks tensors that the configuration asks for."""


class BudgetTooSmall(ValueError):
    """The expert budget cannot hold one expert, or not what one step has to hold."""


class ModelChanged(RuntimeError):
    """The weights that are served are no longer those that the worker was loaded with."""
