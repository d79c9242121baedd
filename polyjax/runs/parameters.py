"""A model's parameters by dotted path, as they are stored."""

from typing import Any

from flax import nnx


def flat_parameters(state: nnx.State) -> dict[str, Any]:
    """Parameters by dotted path."""
    return {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(state)}


def fill_parameters(state: nnx.State, values: dict[str, Any]) -> nnx.State:
    """A state of the same paths with these values."""
    flat = nnx.to_flat_state(state)
    return nnx.from_flat_state(
        [(path, leaf.replace(values[".".join(map(str, path))])) for path, leaf in flat]
    )
