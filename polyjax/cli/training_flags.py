"""The flags of ``polyjax train``: a few of them select the defaults of all others."""

import dataclasses
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import tyro

from polyjax.cli.flags import parse_flags
from polyjax.data.tasks import TASK_NAMES, TaskConfig, task_named
from polyjax.errors import InputError
from polyjax.interop.hub import hub_name, pinned
from polyjax.recipes.encoder_folder import for_encoder, head_for
from polyjax.recipes.paper import recipe
from polyjax.recipes.presets import (
    PRESETS,
    default_of_run,
    for_task,
    from_scratch,
)
from polyjax.recipes.settings import (
    DEFAULT_PRESET,
    SCRATCH,
    Arch,
    PresetName,
    RunConfig,
    TeacherConfig,
    TokenizerChoice,
)
from polyjax.recipes.teaching import TAUGHT
from polyjax.train.losses import loss_of

OWN_PARTS = ("own_encoder", "own_optimizer")
"""Settings that only Python callers can give."""
TASK_HELP = (
    f"--task NAME chooses the data set, and with it the flags --task.*: {TASK_NAMES}. Give it with --help to "
    "see them."
)


@dataclasses.dataclass(frozen=True)
class Choice:
    """The flags that select the defaults of all others."""

    arch: str | None = None
    preset: PresetName = DEFAULT_PRESET
    recipe: str = ""
    init: Path | None = None
    encoder: str | None = None
    task: str | None = None
    loss: str | None = None
    head: str | None = None


@dataclasses.dataclass(frozen=True)
class TaskChoice:
    """The flag that selects a task, and with it the task's flags."""

    task: str | None = None


def parse_run(arguments: Sequence[str], *, prog: str, teacher: TeacherConfig | None = None) -> RunConfig:
    """Parse the command line of a training command.

    Args:
        arguments: arguments of the command line.
        prog: name of the command in help and errors.
        teacher: default settings of the teacher, for a command with its flags; None for none.

    Raises:
        InputError: a flag or a value is invalid.
    """
    arguments = encoder_flag(arguments)
    choice = chosen(Choice, arguments, prog)
    if choice.encoder is not None and hub_name(choice.encoder) is not None:  # record the commit
        choice = dataclasses.replace(choice, encoder=pinned(choice.encoder))
        arguments = [*without(arguments, "--encoder"), f"--encoder={choice.encoder}"]
    if choice.recipe and any(re.match(r"--preset(=|$)", word) for word in arguments):
        raise InputError(
            "preset", problem=f"`recipe` {choice.recipe} has its own settings", fix="give one of them"
        )
    # An unknown architecture is refused by the second parse, which has the documented flag.
    default = preset_of(choice, next((arch for arch in get_args(Arch) if arch == choice.arch), "poly"))
    if choice.init is not None:
        default = default_of_run(
            partial(preset_of, choice), choice.init, arch=choice.arch, head=choice.head or "gated"
        )
        if choice.arch not in (None, default.arch):
            raise InputError(
                "arch",
                problem=f"the model of `init` ({choice.init}) is a {default.arch}-encoder",
                fix="leave `arch` out",
            )
    elif choice.encoder in SCRATCH and not choice.recipe:
        default = from_scratch(default, choice.encoder)
    elif choice.encoder not in (None, *SCRATCH) and default.tokenizer.kind != "pretrained":
        # The recipe would train its own vocabulary, but pretrained weights have theirs.
        default = dataclasses.replace(
            default,
            tokenizer=TokenizerChoice(),
            encoder=dataclasses.replace(default.encoder, name=choice.encoder),
        )
    if choice.init is None:
        default = head_for(default, choice.head, choice.encoder)
    arguments = without(arguments, "--head")
    if any(re.match(r"--train\.(steps|epochs)(=|$)", word) for word in arguments):
        # An explicit number of steps or epochs overrides the limit for few rows.
        default = dataclasses.replace(default, train=dataclasses.replace(default.train, most_epochs=0.0))
    if teacher is not None:
        default = dataclasses.replace(default, teacher=teacher, loss=TAUGHT)
    if any(re.match(r"--optim\.warmup(-steps)?(=|$)", word) for word in arguments):
        # An explicit warm-up replaces that of a converted model.
        default = dataclasses.replace(default, own_optimizer=None)
    if choice.loss is not None:
        default = dataclasses.replace(default, loss=loss_of(choice.loss))
        arguments = without(arguments, "--loss")
    if choice.task is not None:
        default = for_task(default, task_named(choice.task))
        arguments = without(arguments, "--task")
    if choice.encoder is not None and choice.init is None and not choice.recipe:
        default = for_encoder(default, choice.encoder)
    found = parse_flags(
        tyro.conf.AvoidSubcommands[flags_of(default)],
        arguments,
        prog=prog,
        default=flags_of(default)(**_fields(default)),
        description=f"Train a ranker and evaluate it. {TASK_HELP}",
    )
    return RunConfig(**_fields(found))


def flags_of(default: RunConfig) -> type[RunConfig]:
    """A subclass of RunConfig whose flags are those of the chosen task, head, loss and teacher only."""
    narrow = [("arch", Arch), ("task", type(default.task)), ("head", type(default.head))]
    narrow.append(("loss", type(default.loss)))
    hidden = OWN_PARTS
    if default.teacher is None:
        hidden = (*OWN_PARTS, "teacher")
    else:
        narrow.append(("teacher", type(default.teacher)))
    fields = [(name, kind, dataclasses.field(default=getattr(default, name))) for name, kind in narrow]
    suppressed = tyro.conf.Suppress[tyro.conf.Fixed[Any]]
    fields += [(name, suppressed, dataclasses.field(default=None)) for name in hidden]
    namespace = {"__doc__": RunConfig.__doc__}
    return dataclasses.make_dataclass(
        "RunConfig", fields, bases=(RunConfig,), frozen=True, kw_only=True, namespace=namespace
    )


def _fields(config: RunConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def preset_of(choice: Choice, arch: Arch) -> RunConfig:
    """The defaults of the chosen preset or recipe.

    Raises:
        InputError: a flag contradicts the recipe.
    """
    if not choice.recipe:
        return PRESETS[choice.preset](arch)
    found = recipe(choice.recipe)
    if choice.arch not in (None, found.arch):
        raise InputError(
            "arch", expected=f"{found.arch}, the architecture of `recipe` {choice.recipe}", got=choice.arch
        )
    if choice.task is not None:
        raise InputError("task", problem=f"`recipe` {choice.recipe} has its own", fix="leave `task` out")
    return found


def encoder_flag(arguments: Sequence[str]) -> list[str]:
    """The arguments with ``--init-from`` replaced by its synonym ``--encoder``."""
    return [re.sub(r"^--init-from(?==|$)", "--encoder", word) for word in arguments]


def chosen_task(arguments: Sequence[str], *, prog: str) -> tuple[TaskConfig | None, list[str]]:
    """The default settings of the task in ``--task`` (None without it), and the other arguments."""
    name = chosen(TaskChoice, arguments, prog).task
    return None if name is None else task_named(name), without(arguments, "--task")


def with_task(kind: type, task: TaskConfig | None) -> type:
    """A subclass of settings whose task flags are those of the chosen task only.

    Args:
        kind: a dataclass with a field ``task``.
        task: the chosen task; None for none.
    """
    if task is None:
        return kind
    field = ("task", type(task), dataclasses.field(default=task))
    namespace = {"__doc__": kind.__doc__}
    return dataclasses.make_dataclass(
        kind.__name__, [field], bases=(kind,), frozen=True, kw_only=True, namespace=namespace
    )


def chosen(kind: type, arguments: Sequence[str], prog: str):
    """Parse only the flags of a dataclass, and ignore those that only the second parse knows."""
    names = [f"--{field.name}" for field in dataclasses.fields(kind)]
    choice = re.compile(rf"({'|'.join(names)})(=|$)")
    pairs = zip(["", *arguments], arguments, strict=False)
    words = [word for before, word in pairs if choice.match(word) or before in names]
    return parse_flags(kind, words, prog=prog)


def without(arguments: Sequence[str], flag: str) -> list[str]:
    """The arguments without a flag and its value."""
    kept = []
    words = iter(arguments)
    for word in words:
        if word == flag:
            next(words, None)
        elif not word.startswith(f"{flag}="):
            kept.append(word)
    return kept
