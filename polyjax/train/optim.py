"""The optimiser: settings, learning-rate schedule, loss scale, and which parameters are trained."""

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol, assert_never, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.training.dynamic_scale import DynamicScale

from polyjax.errors import InputError
from polyjax.nn.encoders import EncoderSettings, SharesBlocks

Trainable = Literal["all", "all-but-embeddings"] | int


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimiser settings.

    Attributes:
        optimizer: ``adamw``, or ``adamax`` as in the paper's recipes.
        learning_rate: the maximum rate, reached at the end of the warm-up.
        weight_decay: decoupled weight decay, of the matrices of linear layers only (not of biases, norms,
            embeddings or codes).
        clip: maximum global norm of the gradient.
        warmup: share of all steps, in [0, 1), over which the rate grows linearly from 0.
        warmup_steps: number of warm-up steps, instead of a share.
        decay: ``linear`` to zero at the last step, ``inverse-sqrt`` of the number of steps (the warm-up ends
            at the full rate), ``plateau`` on the validation loss, or ``none``.
        plateau_factor: with ``plateau``, multiplies the rate at each plateau.
        plateau_patience: number of validations without improvement that are tolerated before the rate is cut,
            as in torch: 0 cuts after the first one.
        head_rate: multiplies the learning rate of the head's parameters (codes, linear layer).
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        loss_scale: initial loss scale in float16. The loss is multiplied by it, so that small gradients do
            not vanish. At every overflow it is halved and the step is skipped.
        loss_scale_growth: number of steps without overflow after which the loss scale is doubled.
    """

    RETIRED: ClassVar[Mapping[str, Any]] = {"parlai_warmup": 0}

    optimizer: Literal["adamw", "adamax"] = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    clip: float = 1.0
    warmup: float = 0.1
    warmup_steps: int = 0
    decay: Literal["linear", "inverse-sqrt", "plateau", "none"] = "plateau"
    plateau_factor: float = 0.4
    plateau_patience: int = 0
    head_rate: float = 10.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    loss_scale: float = 2.0**15
    loss_scale_growth: int = 2000

    def __post_init__(self) -> None:
        """Raise InputError for an invalid value."""
        for name in ("learning_rate", "clip", "head_rate", "eps", "loss_scale", "loss_scale_growth"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"optim.{name}", expected="above 0, and finite", got=getattr(self, name))
        for name in ("warmup", "b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"optim.{name}", expected="0 or more, and below 1", got=getattr(self, name))
        if not 0 < self.plateau_factor < 1:
            raise InputError(
                "optim.plateau_factor", expected="between 0 and 1, both excluded", got=self.plateau_factor
            )
        for name in ("plateau_patience", "weight_decay", "warmup_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"optim.{name}", expected="0 or more, and finite", got=getattr(self, name))


@runtime_checkable
class TellsSchedule(Protocol):
    """A factory of the optimiser of ``make_optimizer`` with its own schedule.

    Because the schedule is known, the learning rate can be logged.
    """

    def schedule(self, optim: OptimConfig, n_steps: int) -> optax.Schedule:
        """The learning rate as a function of the step (from 0)."""
        ...

    def __call__(self, optim: OptimConfig, n_steps: int) -> optax.GradientTransformation:
        """The optimiser of ``make_optimizer`` with this schedule."""
        ...


def schedule(
    config: OptimConfig, n_steps: int, *, warm: Callable[[jax.Array], jax.Array] | None = None
) -> optax.Schedule:
    """The learning rate as a function of the step i (from 0): linear warm-up, then ``decay``.

    The warm-up factor is (i + 1) / warm-up steps, so the rate of the first step is above zero. So is that of
    the last step.

    >>> rate = schedule(OptimConfig(learning_rate=1.0, warmup=0.2, decay="linear"), 10)
    >>> [round(float(rate(i)), 3) for i in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.125]
    >>> rate = schedule(OptimConfig(learning_rate=1.0, warmup_steps=4, decay="inverse-sqrt"), 100)
    >>> [round(float(rate(i)), 3) for i in (0, 3, 15, 63)]
    [0.25, 1.0, 0.5, 0.25]

    Args:
        config: rates and decay.
        n_steps: total number of steps.
        warm: another warm-up: step (float32, from 0) -> fraction of the rate.
    """
    n_warmup = config.warmup_steps or round(config.warmup * n_steps)

    # Not optax.linear_schedule and join_schedules: they compute 1 - i / n instead of (n - i) / n. The float32
    # results differ (by 4e-5 of the rate near the end), so a resumed run would not match bit by bit.
    def rate(i: jax.typing.ArrayLike) -> jax.Array:
        step = jnp.asarray(i, jnp.float32)
        share = (step + 1.0) / max(n_warmup, 1) if warm is None else warm(step)
        left = jnp.ones(())
        if config.decay == "linear":
            left = (n_steps - step) / max(n_steps - n_warmup, 1)
        elif config.decay == "inverse-sqrt":  # arXiv 1706.03762, equation 3
            left = jnp.sqrt(max(n_warmup, 1) / (step + 1.0))
        return config.learning_rate * jnp.clip(jnp.minimum(share, left), 0.0, 1.0)

    return rate


def plateau(config: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """The rule that cuts the learning rate when the validation loss stops falling; patience as in torch.

    optax's patience is torch's plus one: torch's 0 is optax's 1, and optax's 0 would cut the rate even after
    an improvement.
    """
    return optax.contrib.reduce_on_plateau(
        factor=config.plateau_factor, patience=config.plateau_patience + 1, rtol=1e-4, cooldown=0
    )


def make_optimizer(
    config: OptimConfig, n_steps: int, *, rate: optax.Schedule | None = None
) -> optax.GradientTransformation:
    """clip -> moments (Adam or Adamax) -> decoupled weight decay -> ``head_rate`` -> schedule.

    The plateau factor is not in the chain: it changes at validations only, and the step applies it.

    Args:
        config: settings.
        n_steps: total number of steps.
        rate: another schedule than that of the settings.
    """
    match config.optimizer:
        case "adamw":
            moments = optax.scale_by_adam(config.b1, config.b2, config.eps)
        case "adamax":
            moments = optax.scale_by_adamax(config.b1, config.b2, config.eps)
        case other:
            assert_never(other)
    return optax.chain(
        optax.clip_by_global_norm(config.clip),
        moments,
        optax.add_decayed_weights(config.weight_decay, mask=_decayed),
        optax.masked(optax.scale(config.head_rate), _of_head),
        optax.scale_by_learning_rate(rate or schedule(config, n_steps)),
    )


def steps_counted(state: optax.OptState) -> jax.Array:
    """Number of steps counted by the schedule of ``make_optimizer``, int32 []; skipped steps do not count."""
    last = typing.cast(tuple, state)[-1]
    assert isinstance(last, optax.ScaleByScheduleState)
    return jnp.asarray(last.count)


def logged_rate(state: optax.OptState) -> jax.Array | None:
    """The learning rate in an optimiser's state; None if it has none (or several).

    >>> state = optax.inject_hyperparams(optax.sgd)(learning_rate=0.5).init({"a": jnp.ones(2)})
    >>> float(logged_rate(state))
    0.5
    """
    rates = optax.tree.get_all_with_path(
        state, "learning_rate", filtering=lambda path, value: isinstance(value, jax.Array)
    )
    return rates[0][1] if len(rates) == 1 else None


def make_loss_scale(config: OptimConfig, dtype: str) -> DynamicScale | None:
    """The loss scale for a dtype of the computation; None unless it is float16."""
    if dtype != "float16":
        return None
    return DynamicScale(
        growth_interval=config.loss_scale_growth,
        fin_steps=typing.cast(int, jnp.zeros((), jnp.int32)),
        scale=typing.cast(float, jnp.asarray(config.loss_scale, jnp.float32)),
    )


def _decayed(params: optax.Params) -> optax.Params:
    """True for parameters with weight decay: matrices of linear layers."""
    return jax.tree_util.tree_map_with_path(lambda path, _: "kernel" in jax.tree_util.keystr(path), params)


def _of_head(params: optax.Params) -> optax.Params:
    """True for parameters of the head."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.tree_util.keystr(path).startswith("['head']"), params
    )


def trainable_filter(trainable: Trainable, encoder: EncoderSettings) -> nnx.filterlib.Filter:
    """A filter of the parameters to train, see ``TrainConfig.trainable``.

    Args:
        trainable: ``all``, ``all-but-embeddings``, or a number k of top layers. Weights that layers share are
            trained if one of the top k layers uses them.
        encoder: settings of the transformer.

    Raises:
        InputError: k is not between 0 and the number of layers.
    """
    n_layers = encoder.n_layers
    if isinstance(trainable, int) and not 0 <= trainable <= n_layers:
        expected = f"all, all-but-embeddings, or 0 to {n_layers} layers"
        raise InputError("train.trainable", expected=expected, got=trainable)

    def chosen(path: tuple, value: object) -> bool:
        names = ".".join(map(str, path))
        if trainable == "all" or names.startswith("head."):
            return True
        if "embeddings." in names:
            return False
        if trainable == "all-but-embeddings":
            return True
        layer = re.search(r"blocks\.(\d+)\.", names)
        if layer is None:
            return True
        block = int(layer[1])
        last = encoder.last_layer(block) if isinstance(encoder, SharesBlocks) else block
        return last >= n_layers - int(trainable)

    return nnx.All(nnx.Param, chosen)
