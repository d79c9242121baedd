"""Reads the settings of a model folder saved by sentence-transformers or by transformers."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from polyjax.data.huggingface_tokenizer import (
    TOKENIZER_CONFIG_FILE,
    HuggingFaceTokenizer,
    read_settings,
    read_tokenizer,
)
from polyjax.data.text import TextConfig
from polyjax.errors import InputError, shown
from polyjax.interop.huggingface import WEIGHTS, TensorFiles, family_of, read_entries, read_object
from polyjax.interop.sentence_transformers.modules import MODULES, Modules, read_modules, torch_activation
from polyjax.interop.sentence_transformers.prompts import PROMPTS, read_prompts, role_prompts
from polyjax.nn.activations import Activation
from polyjax.nn.encoders import Classifier, ConfigJson, EncoderSettings, Family
from polyjax.nn.heads import BiConfig, CrossConfig
from polyjax.nn.reduce import Reduction

LENGTHS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Possible names of the Transformer module's settings file; old versions wrote all but the first."""
CLASSIFIER = "ForSequenceClassification"
SCORE_ACTIVATIONS: tuple[Activation, ...] = ("identity", "sigmoid", "tanh")
"""Activations of a cross-encoder's score that preserve the order of scores."""
_LONG_BUCKETS = (768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384, 32768)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderFolder:
    """Settings of the model in a folder, from its JSON files; weights are not read.

    Attributes:
        folder: the model folder.
        transformer: the folder of the transformer: ``folder`` itself or one inside it.
        entries: entries of the transformer's config.json.
        family: the encoder's family.
        settings: the encoder's settings.
        modules: content of modules.json; None without that file.
        reductions: token outputs -> vector; the vectors of several reductions are concatenated.
        why: where the reductions come from, for people.
        classifier: the head of a cross-encoder; None for a bi-encoder.
        activation: activation of a cross-encoder's score.
        similarity: similarity of two vectors of a bi-encoder.
        prompts: prompts by name.
        default_prompt: name of the default prompt; None for none.
        max_length: maximum length of a sequence, in tokens; longer ones are truncated.
        max_length_from: where ``max_length`` comes from, for people.
        lower_case: whether texts are lower-cased before the tokenizer's own normalisation.
    """

    folder: Path
    transformer: Path
    entries: ConfigJson
    family: Family
    settings: EncoderSettings
    modules: Modules | None
    reductions: tuple[Reduction, ...]
    why: str
    classifier: Classifier | None
    activation: Activation
    similarity: Literal["cosine", "dot"]
    prompts: Mapping[str, str]
    default_prompt: str | None
    max_length: int
    max_length_from: str
    lower_case: bool

    @property
    def pad_id(self) -> int | None:
        """The padding token's id in config.json; None if it has none."""
        found = self.entries.entries.get("pad_token_id")
        return found if isinstance(found, int) else None

    def tokenizer(self) -> HuggingFaceTokenizer:
        """The tokenizer, with lower-casing if ``lower_case`` is set.

        Raises:
            InputError: a file is missing or broken.
        """
        found = read_tokenizer(self.transformer, pad_id=self.pad_id)
        return found.lower_cased() if self.lower_case else found

    def bi_head(self) -> BiConfig:
        """Settings of a bi-encoder's head that gives the embeddings and similarities of the folder.

        Scores are cosines, or dot products if ``similarity`` is ``dot`` and no Normalize module comes last.
        """
        normalized = self.modules is not None and self.modules.normalize
        dense = () if self.modules is None else tuple(module.config for module in self.modules.dense)
        return BiConfig(
            reduction=self.reductions[0],
            also=self.reductions[1:],
            shared_encoder=True,
            dense=dense,
            normalize=normalized or self.similarity == "cosine",
            raw_embeddings=self.similarity == "cosine" and not normalized,
        )

    def cross_head(self) -> CrossConfig:
        """Settings of the cross-encoder's head; only for a folder with a ``classifier``."""
        assert self.classifier is not None
        return dataclasses.replace(self.classifier.head, activation=self.activation)

    def text(self, *, turns: int) -> TextConfig:
        """How texts become tokens.

        Args:
            turns: number of a context's last turns that are read.
        """
        default = self.prompts.get(self.default_prompt or "", "")
        paired = self.classifier is not None
        query, document = self.role_prompts()
        return TextConfig(
            max_turns=turns,
            context_tokens=self.max_length,
            candidate_tokens=self.max_length,
            buckets=buckets_for(self.max_length),
            cut="end",
            pair_tokens=self.max_length if paired else 0,
            context_prompt=default if paired else query,
            candidate_prompt="" if paired else document,
            embedding_prompt=default,
            prompts=tuple(sorted(self.prompts.items())),
            pool_prompts=self.modules is None or self.modules.pool_prompts,
        )

    def role_prompts(self) -> tuple[str, str]:
        """The prompts of contexts and of candidates: those that the folder names for queries and documents.

        A side for which it names none gets the default prompt, unless that is the other side's. Of several
        names, the first whose prompt is not empty is taken: sentence-transformers adds an empty ``document``
        to the ``passage:`` of models such as e5.
        """
        return role_prompts(self.prompts, self.default_prompt)


def buckets_for(longest: int) -> tuple[int, ...]:
    """Padded lengths (buckets) for sequences of up to ``longest`` tokens.

    >>> buckets_for(600)[-3:]
    (384, 512, 768)
    """
    usual = TextConfig().buckets
    longer = zip((usual[-1], *_LONG_BUCKETS), _LONG_BUCKETS, strict=False)
    return (*usual, *(n for before, n in longer if before < longest))


def read_folder(folder: Path) -> EncoderFolder:
    """Read the settings of the model in a folder; of its weights only the names.

    Raises:
        InputError: a file is missing or broken, or asks for a feature that is not implemented.
    """
    modules = read_modules(folder)
    transformer = folder if modules is None else modules.transformer
    entries = read_entries(transformer)
    family = family_of(entries)
    settings = family.read(entries)
    classifier = _classifier(entries, family)
    if modules is None and not entries.entries.get("architectures"):
        _check_no_classifier(transformer, entries, family)
    spoken = read_prompts(folder)
    lengths = _lengths(transformer, paired=classifier is not None)
    max_length, origin = _max_length(transformer, lengths, settings)
    if classifier is not None and modules is not None and modules.names != ("Transformer",):
        raise InputError.in_file(
            folder / MODULES, expected=f"a Transformer alone for a {CLASSIFIER}", got=modules.names[1]
        )
    reductions, why = _reductions(folder, modules, classifier, settings)
    return EncoderFolder(
        folder=folder,
        transformer=transformer,
        entries=entries,
        family=family,
        settings=settings,
        modules=modules,
        reductions=reductions,
        why=why,
        classifier=classifier,
        activation=_activation(folder, entries, spoken),
        similarity=spoken["similarity"],
        prompts=spoken["prompts"],
        default_prompt=spoken["default"],
        max_length=max_length,
        max_length_from=origin,
        lower_case=lengths.get("do_lower_case") or False,
    )


def _reductions(
    folder: Path, modules: Modules | None, classifier: Classifier | None, settings: EncoderSettings
) -> tuple[tuple[Reduction, ...], str]:
    if classifier is not None:
        reduction = classifier.head.reduction
        assert isinstance(reduction, str), "families' classifiers reduce by name"
        return (reduction,), f"the classifier of {CLASSIFIER}"
    if modules is None:
        return ("mean",), f"no {MODULES}: the mean of the real tokens, as sentence-transformers takes"
    if not modules.reductions:
        raise InputError.in_file(folder / MODULES, expected="a Pooling module", got=shown("none"))
    width = settings.dim
    if modules.pooled_dim not in (None, width):
        raise InputError.in_file(
            folder / MODULES,
            expected=f"a Pooling of the transformer's width of {width}",
            got=modules.pooled_dim,
        )
    width *= len(modules.reductions)
    for module in modules.dense:
        if module.dim_in != width:
            raise InputError.in_file(
                module.folder / "config.json", expected=f"in_features of {width}", got=module.dim_in
            )
        width = module.config.dim
    return modules.reductions, "its Pooling module"


def _classifier(entries: ConfigJson, family: Family) -> Classifier | None:
    """The head of a cross-encoder; None if the folder is a bi-encoder."""
    architectures = entries.entries.get("architectures") or [""]
    if not isinstance(architectures, list):
        raise InputError.in_file(entries.path, expected="a list for 'architectures'", got=architectures)
    if not str(architectures[0]).endswith(CLASSIFIER):
        return None
    if family.classifier is None:
        raise InputError.in_file(
            entries.path, expected=f"a family whose {CLASSIFIER} is supported", got=architectures[0]
        )
    labels = entries.entries.get("id2label")
    n = len(labels) if isinstance(labels, dict) else entries.number("num_labels", 2)
    if n != 1:
        raise InputError.in_file(
            entries.path, expected="one label ('id2label'), whose score ranks", got=shown(f"{n} labels")
        )
    return family.classifier(entries)


def _check_no_classifier(transformer: Path, entries: ConfigJson, family: Family) -> None:
    """Raise InputError if there are weights of a classifier, which config.json does not mention."""
    if family.classifier is None or not (transformer / WEIGHTS).is_file():
        return
    name = f"{family.classifier(entries).linear}.weight"
    with TensorFiles(transformer) as tensors:
        if tensors.has(name):
            beginning = family.architectures[entries.entries["model_type"]]
            raise InputError.in_file(
                entries.path,
                problem=f"'architectures' is missing, and {WEIGHTS} has a classifier ({name})",
                fix=f'add "architectures": ["{beginning}{CLASSIFIER}"] for a cross-encoder, or '
                f'["{beginning}Model"] for the transformer under it',
            )


def _lengths(transformer: Path, *, paired: bool) -> dict[str, Any]:
    """The entries of the Transformer module's settings file, such as max_seq_length, and its path."""
    path = next((transformer / name for name in LENGTHS if (transformer / name).is_file()), None)
    if path is None:
        return {}
    entries = read_object(path)
    method = {"method": "forward", "method_output_name": "logits" if paired else "last_hidden_state"}
    fixed: dict[str, Any] = {
        "transformer_task": "sequence-classification" if paired else "feature-extraction",
        "modality_config": {"text": method},
        "module_output_name": "scores" if paired else "token_embeddings",
    }
    kinds = {"max_seq_length": int, "do_lower_case": bool, "unpad_inputs": bool}  # the last is about speed
    fixed |= dict.fromkeys(("processing_kwargs", "query_length", "document_length", "query_expansion"))
    for name, value in entries.items():
        if name in ("model_args", "tokenizer_args", "config_args") and not value:
            continue
        if name in fixed:
            if value != fixed[name]:
                raise InputError.in_file(path, expected=f"{fixed[name]!r} for {name!r}", got=value)
        elif name not in kinds:
            raise InputError.in_file(path, expected=f"entries of {', '.join((*kinds, *fixed))}", got=name)
        elif value is not None and type(value) is not kinds[name]:
            raise InputError.in_file(path, expected=f"a {kinds[name].__name__} for {name!r}", got=value)
    return {**entries, "path": path}


def _max_length(transformer: Path, lengths: Mapping[str, Any], settings: EncoderSettings) -> tuple[int, str]:
    """The maximum length of a sequence, in tokens, and where it comes from."""
    given = lengths.get("max_seq_length")
    if given is not None:
        if given < 3:
            raise InputError.in_file(lengths["path"], expected="a max_seq_length of at least 3", got=given)
        found, origin = given, lengths["path"].name
    else:
        limit = read_settings(transformer).get("model_max_length")
        found, origin = settings.n_positions, "the encoder's positions"
        if isinstance(limit, int | float) and limit < 1e9:  # transformers writes 1e30 for no limit
            found, origin = int(limit), TOKENIZER_CONFIG_FILE
    if found > settings.n_positions:
        return settings.n_positions, f"the encoder's positions, fewer than the {found} of {origin}"
    return found, origin


def _activation(folder: Path, entries: ConfigJson, spoken: Mapping[str, Any]) -> Activation:
    """The activation of a cross-encoder's score, from the entry of any version; sigmoid by default."""
    older = entries.section("sentence_transformers").entries.get("activation_fn")
    oldest = entries.entries.get("sbert_ce_default_activation_function")
    places = (
        (folder / PROMPTS, "activation_fn", spoken["activation_fn"]),
        (entries.path, "activation_fn", older),
        (entries.path, "sbert_ce_default_activation_function", oldest),
    )
    path, name, dotted = next((place for place in places if place[2] is not None), (entries.path, "", None))
    if dotted is None:
        return "sigmoid"
    found = torch_activation(path, name, dotted)
    if found not in SCORE_ACTIVATIONS:
        raise InputError.in_file(path, expected=f"{' or '.join(SCORE_ACTIVATIONS)} for {name!r}", got=dotted)
    return found
