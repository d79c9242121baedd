"""Writes a scorer as a folder that sentence-transformers and compatible libraries load.

Classes and entries are those of version 5 and earlier; version 6 reads them too.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from polyjax.data.huggingface_tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, HuggingFaceTokenizer
from polyjax.data.known import KNOWN
from polyjax.data.text import TextConfig
from polyjax.errors import InputError, shown
from polyjax.inference.scorer import TextScorer
from polyjax.interop.huggingface import WEIGHTS, family_for, tensors_of
from polyjax.interop.sentence_transformers.folder import CLASSIFIER, LENGTHS, read_folder
from polyjax.interop.sentence_transformers.model_card import model_card
from polyjax.interop.sentence_transformers.modules import (
    CONFIG,
    FLAGS,
    MODULES,
    OF_PAIRS,
    ONLY_TRANSFORMER,
    POOLING,
    SENTENCE,
    torch_class,
)
from polyjax.interop.sentence_transformers.prompts import PROMPTS, ROLES, role_prompts
from polyjax.nn.encoders import Classifier, ConfigJson
from polyjax.nn.heads import BiConfig, CrossConfig
from polyjax.runtime.files import new_folder, save_array, write_text

_CLASSES = "sentence_transformers.models"
_VERSION = {"sentence_transformers": "5.1.2"}  # whose file format is written
_ARITHMETIC = ("dropout", "attention_dropout", "dtype", "remat", "remat_keeps", "scan")


def write_folder(
    scorer: TextScorer,
    out: Path,
    *,
    name: str,
    base: str | None = None,
    trained_on: np.ndarray | None = None,
) -> None:
    """Write a scorer as a folder of sentence-transformers, completely or not at all.

    The settings are read back from a temporary folder before it is renamed to ``out``. If they differ from
    the model's, the export is refused.

    Args:
        scorer: a bi-encoder with one transformer, or a cross-encoder with its family's standard classifier,
            in float32.
        out: a folder that does not exist yet.
        name: name of the model, for README.md.
        base: the hub model that it was trained from, as ``organisation/model@commit``.
        trained_on: digests of its training rows, to recognise them when the model is evaluated or trained.

    Raises:
        InputError: sentence-transformers has no equivalent of the model, or the folder exists or cannot be
            written.
    """
    made = _made(scorer)
    card = model_card(made.head, made.config, made.tokenizer, made.limit, name=name, base=base)
    with new_folder(out) as aside:
        for path, content in {**made.texts, "README.md": card}.items():
            (aside / path).parent.mkdir(exist_ok=True)
            write_text(aside / path, content)
        for path, arrays in made.arrays.items():
            save_file(arrays, aside / path, metadata={"format": "pt"})
        if trained_on is not None:
            save_array(aside / KNOWN, trained_on)
        _check(aside, made)


_OTHERWISE = "`polyjax serve` serves it as it is, `polyjax export RUN_DIR OUT` writes its parameters"
"""What to do with a model that sentence-transformers has no equivalent of."""


def _refused(what: str, fix: str = _OTHERWISE) -> InputError:
    return InputError(
        "export",
        expected="a bi-encoder with one transformer, or a cross-encoder with its family's classifier",
        got=shown(what),
        fix=fix,
        is_argument=False,
    )


def _other_head(head: Any) -> tuple[str, str]:
    """A description of a head that has no equivalent in sentence-transformers, and what to do."""
    arch = getattr(head, "arch", type(head).__name__)
    if arch == "poly":
        return "a poly-encoder", f"train a bi-encoder (`arch` bi); {_OTHERWISE}"
    if arch == "cross":
        what = f"a cross-encoder with settings of {type(head).__name__}"
        standard = "`head` joint, `head.reduction` first, `head.dense` tanh with a BERT"
        return what, f"train with its family's classifier ({standard}); {_OTHERWISE}"
    return f"a {arch}-encoder with settings of {type(head).__name__}", _OTHERWISE


def _made(scorer: TextScorer) -> "_Files":
    """The files to write for a model.

    Raises:
        InputError: sentence-transformers has no equivalent of the model.
    """
    head, encoder = scorer.settings.head, scorer.settings.encoder
    if encoder.dtype != "float32":
        raise InputError(
            "dtype", expected="float32", got=encoder.dtype, fix="load the model in float32 to export it"
        )
    if not isinstance(scorer.text.tokenizer, HuggingFaceTokenizer):
        fix = f"train from a pretrained `encoder`, whose tokenizer can be exported; {_OTHERWISE}"
        raise _refused(f"a model whose tokenizer is a {type(scorer.text.tokenizer).__name__}", fix)
    if not isinstance(head, BiConfig | CrossConfig):
        raise _refused(*_other_head(head))
    if isinstance(head, BiConfig) and not head.shared_encoder:
        raise _refused("two separate transformers", "train with `head.shared_encoder`")
    if scorer.text.config.layout != "standard" or scorer.text.config.padding != "bucket":
        raise _refused("a model with a layout or padding other than the default")
    if not isinstance(head.reduction, str):
        raise _refused(
            f"the reduction {head.reduction}", f"train with `head.reduction` mean or first; {_OTHERWISE}"
        )
    if getattr(encoder, "output_scaling", 1.0) != 1.0:
        raise _refused(
            "hidden states that are multiplied by `encoder.output_scaling`", f"train with 1.0; {_OTHERWISE}"
        )
    return _BiFiles(scorer, head) if isinstance(head, BiConfig) else _CrossFiles(scorer, head)


def _check(folder: Path, made: "_Files") -> None:
    """Raise InputError unless the settings read from the folder are the model's."""
    found = read_folder(folder)
    settings: Any = made.settings
    arithmetic = {name: getattr(found.settings, name) for name in _ARITHMETIC}
    text, own = found.text(turns=made.config.max_turns), made.config
    if isinstance(made.head, BiConfig):
        head: Any = dataclasses.replace(found.bi_head(), score_scale=made.head.score_scale)
    else:
        head = found.cross_head()
    prompts = ("context_prompt", "candidate_prompt", "embedding_prompt", "pool_prompts")
    for what, theirs, ours in (
        ("its encoder's settings", found.settings, dataclasses.replace(settings, **arithmetic)),
        ("its head's settings", head, made.head),
        *((f"`text.{name}`", getattr(text, name), getattr(own, name)) for name in prompts),
    ):
        if theirs != ours:
            raise _refused(f"a model for which the folder cannot express {what}")


class _Files:
    """The files of an exported folder: texts and arrays, by path inside the folder.

    Args:
        scorer: the model.
        head: settings of its head.
    """

    def __init__(self, scorer: TextScorer, head: BiConfig | CrossConfig):
        assert isinstance(scorer.text.tokenizer, HuggingFaceTokenizer)
        self.head, self.settings, self.values = head, scorer.settings.encoder, scorer.parameters()
        self.config, self.tokenizer = scorer.text.config, scorer.text.tokenizer
        self.family = family_for(self.settings)
        self.entries = self.family.entries(self.settings)
        self.architecture = self.family.architectures[self.entries["model_type"]]
        self.limit = 0
        self.texts: dict[str, str] = {}
        self.arrays: dict[str, dict[str, np.ndarray]] = {}

    def json(self, folder: str, file: str, value: Any) -> None:
        """Add a value as a JSON file."""
        path = f"{folder}/{file}" if folder else file
        self.texts[path] = json.dumps(value, indent=2, ensure_ascii=False) + "\n"

    def write_encoder(self, architecture: str, extra: Mapping[str, Any], prefix: str) -> None:
        """Add config.json and the encoder's tensors."""
        entries = {**self.entries, "architectures": [architecture], **extra, "dtype": "float32"}
        start, end = self.tokenizer.start_id, self.tokenizer.end_id
        # Without these entries, transformers takes its default ids, which our vocabulary may not contain.
        marks = {"bos_token_id": start, "cls_token_id": start, "eos_token_id": end, "sep_token_id": end}
        self.json("", CONFIG, {"pad_token_id": self.tokenizer.pad_id, **marks, **entries})
        own = {name.partition("encoder.")[2]: value for name, value in self.values.items()}
        self.arrays[WEIGHTS] = tensors_of(self.family.stored(self.settings), own, prefix)

    def write_tokenizer(self) -> None:
        """Add tokenizer.json, and a tokenizer_config.json with which transformers uses it unchanged."""
        own = self.tokenizer
        tokens = {name: token for name, token in own.settings().items() if name.endswith("_token")}
        inputs = ["input_ids", *(["token_type_ids"] if own.pair_segments else []), "attention_mask"]
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": inputs,
            "model_max_length": self.limit,
            "split_special_tokens": own.markers == "text",
            "cls_token": own.token(own.start_id),
            "sep_token": own.token(own.end_id),
            **tokens,
        }
        self.json("", TOKENIZER_CONFIG_FILE, settings)
        content = json.loads(own.files()[TOKENIZER_FILE])
        if content.get("post_processor") is None:  # HuggingFaceTokenizer then adds tokens as BERT does
            marks = {
                "sep": [own.token(own.end_id), own.end_id],
                "cls": [own.token(own.start_id), own.start_id],
            }
            content["post_processor"] = {"type": "BertProcessing", **marks}
        self.json("", TOKENIZER_FILE, content)

    def write_prompts(
        self, kind: str, prompts: Mapping[str, str], default: str, more: dict[str, Any]
    ) -> None:
        """Add config_sentence_transformers.json."""
        prompts = dict(prompts)
        if default and default not in prompts.values():
            prompts["default"] = default
        entries = {"model_type": kind, "__version__": _VERSION, "prompts": prompts}
        self.json("", PROMPTS, {**entries, "default_prompt_name": _name_of(default, prompts), **more})


class _BiFiles(_Files):
    def __init__(self, scorer: TextScorer, head: BiConfig):
        super().__init__(scorer, head)
        self.limit = max(self.config.context_tokens, self.config.candidate_tokens)
        self.write_encoder(f"{self.architecture}Model", {}, "")
        self.write_tokenizer()
        self.json("", LENGTHS[0], {"max_seq_length": self.limit, "do_lower_case": False})
        self._write_modules(head)
        similarity = {"similarity_fn_name": "cosine" if head.normalize else "dot"}
        prompts, default = self._named_prompts(), self.config.embedding_prompt
        self.write_prompts("SentenceTransformer", prompts, default, similarity)

    def _write_modules(self, head: BiConfig) -> None:
        self.json("1_Pooling", CONFIG, _pooling(head, self.settings.dim, self.config))
        names, width = ["Transformer", "Pooling"], self.settings.dim * (1 + len(head.also))
        for i, layer in enumerate(head.dense):
            names += ["Normalize", "Dense"] if layer.unit_input else ["Dense"]
            place, ours = f"{len(names) - 1}_Dense", f"head.dense.layers.{i}"
            entries = {"in_features": width, "out_features": layer.dim, "bias": layer.bias}
            entries["activation_function"] = torch_class(layer.activation)
            self.json(place, CONFIG, entries)
            arrays = {"linear.weight": np.ascontiguousarray(self.values[f"{ours}.kernel"].T)}
            self.arrays[f"{place}/{WEIGHTS}"] = arrays
            if layer.bias:
                arrays["linear.bias"] = self.values[f"{ours}.bias"]
            width = layer.dim
        if head.normalize and not head.raw_embeddings:
            names.append("Normalize")
        modules = [
            {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{name}", "type": f"{_CLASSES}.{name}"}
            for i, name in enumerate(names)
        ]
        self.json("", MODULES, modules)
        for i, name in enumerate(names):
            if name == "Normalize":
                self.json(f"{i}_{name}", CONFIG, SENTENCE)

    def _named_prompts(self) -> dict[str, str]:
        """The model's prompts, under names from which any reader takes those of contexts and candidates."""
        config = self.config
        prompts, wanted = dict(config.prompts), (config.context_prompt, config.candidate_prompt)
        default = _name_of(config.embedding_prompt, prompts)
        first = tuple(_first_named(prompts, names, default) for names in ROLES.values())
        if role_prompts(prompts, default) == wanted == first:
            return prompts
        for (name, names), prompt in zip(ROLES.items(), wanted, strict=True):
            if not prompt:  # a further name of the role would be read instead
                prompts = {n: p for n, p in prompts.items() if n not in names}
            prompts[name] = prompt
        return prompts


def _first_named(prompts: Mapping[str, str], names: Sequence[str], default: str | None) -> str:
    """The prompt of a role as sentence-transformers reads it: the first of its names, else the default."""
    name = next((name for name in names if name in prompts), default)
    return "" if name is None else prompts[name]


class _CrossFiles(_Files):
    def __init__(self, scorer: TextScorer, head: CrossConfig):
        super().__init__(scorer, head)
        self.limit = self.config.pair_limit()
        activation = torch_class(head.activation)
        extra = {
            **self.family.classifier_entries(head),
            "id2label": {"0": "LABEL_0"},
            "label2id": {"LABEL_0": 0},
            "sentence_transformers": {"activation_fn": activation, "version": "5.1.2"},
        }
        classifier = self._classifier(head, extra)
        self.write_encoder(f"{self.architecture}{CLASSIFIER}", extra, self.family.prefixes[0])
        own = {name.removeprefix("head."): value for name, value in self.values.items()}
        self.arrays[WEIGHTS] |= tensors_of(classifier.stored(), own, "")
        self.write_tokenizer()
        if self.config.context_prompt:
            default, more = self.config.context_prompt, {"activation_fn": activation}
            self.write_prompts("CrossEncoder", dict(self.config.prompts), default, more)
            # sentence-transformers 6 reads prompts only beside these two files; 5 knows no prompts of pairs.
            self.json("", MODULES, ONLY_TRANSFORMER)
            self.json("", LENGTHS[0], OF_PAIRS)

    def _classifier(self, head: CrossConfig, extra: Mapping[str, Any]) -> Classifier:
        """The family's classifier.

        Raises:
            InputError: the family has none, or the head differs from it.
        """
        kind = type(self.settings).__name__
        if self.family.classifier is None:
            fix = f"train from an encoder of another family, such as BERT; {_OTHERWISE}"
            raise _refused(f"a cross-encoder with a {kind}, for which transformers has no classifier", fix)
        found = None
        with_entries = ConfigJson(Path(CONFIG), {**self.entries, **extra})
        try:
            found = self.family.classifier(with_entries)
        except InputError:  # config.json cannot express the head's dense layer or its activation
            found = self.family.classifier(ConfigJson(Path(CONFIG), self.entries))
        standard = dataclasses.replace(found.head, activation=head.activation)
        differ = {
            field.name: getattr(standard, field.name)
            for field in dataclasses.fields(standard)
            if getattr(standard, field.name) != getattr(head, field.name)
        }
        if differ:
            wanted = ", ".join(f"`head.{name}` {value}" for name, value in differ.items())
            raise _refused(f"a cross-encoder with another head than a {kind}'s", f"train with {wanted}")
        return found


def _name_of(prompt: str, prompts: Mapping[str, str]) -> str | None:
    """The name of a prompt in ``prompts``; None if the prompt is empty or not among them."""
    return next((name for name, text in prompts.items() if prompt and text == prompt), None)


def _pooling(head: BiConfig, dim: int, config: TextConfig) -> dict[str, Any]:
    """Entries of the Pooling module's config.json: flags, and for a single mode its newer name too."""
    names = {ours: theirs for theirs, ours in POOLING.items()}
    assert isinstance(head.reduction, str), "_made refuses other reductions"
    modes = [names[reduction] for reduction in (head.reduction, *head.also)]
    if modes != [mode for mode in POOLING if mode in modes]:  # flags cannot express another order, or repeats
        return {"embedding_dimension": dim, "pooling_mode": modes, "include_prompt": config.pool_prompts}
    flags = {flag: mode in modes for flag, mode in FLAGS.items()}
    newer = {"pooling_mode": modes[0]} if len(modes) == 1 else {}
    return {"word_embedding_dimension": dim, **flags, **newer, "include_prompt": config.pool_prompts}
