"""Writes README.md of an exported folder: metadata for model hubs, and how to use the model."""

from collections.abc import Iterable

from polyjax.data.huggingface_tokenizer import HuggingFaceTokenizer
from polyjax.data.text import TextConfig
from polyjax.nn.heads import BiConfig, CrossConfig
from polyjax.version import __version__

LIBRARY = "sentence-transformers"


def model_card(
    head: BiConfig | CrossConfig,
    config: TextConfig,
    tokenizer: HuggingFaceTokenizer,
    limit: int,
    *,
    name: str,
    base: str | None = None,
) -> str:
    """The README.md of a bi-encoder or a cross-encoder.

    Args:
        head: settings of the model's head.
        config: how texts become tokens.
        tokenizer: the model's tokenizer.
        limit: maximum length of a text (bi-encoder) or pair (cross-encoder), in tokens.
        name: name of the model.
        base: the hub model that it was trained from, as ``organisation/model@commit``.
    """
    told = _of_texts(config, tokenizer)
    metadata = []
    if base is not None:
        model, _, revision = base.partition("@")
        metadata = [f"base_model: {model}"]
        told.append(f"It was trained from `{model}`, revision `{revision}`.")
    if isinstance(head, BiConfig):
        use = [
            "from sentence_transformers import SentenceTransformer",
            "",
            f'model = SentenceTransformer("{name}")',
            'queries = model.encode_query(["a question"])',
            'documents = model.encode_document(["an answer", "another"])',
            "model.similarity(queries, documents)",
        ]
        tags = (LIBRARY, "sentence-similarity", "feature-extraction", "polyjax")
        return _page(name, "sentence-similarity", tags, metadata, [*_of_bi(head, config, limit), *told], use)
    use = [
        "from sentence_transformers import CrossEncoder",
        "",
        f'model = CrossEncoder("{name}")',
        'model.predict([("a question", "an answer")])',
        'model.rank("a question", ["an answer", "another"])',
    ]
    tags = (LIBRARY, "cross-encoder", "reranker", "polyjax")
    return _page(name, "text-ranking", tags, metadata, [*_of_cross(head, config, limit), *told], use)


def _of_bi(head: BiConfig, config: TextConfig, limit: int) -> list[str]:
    told = [f"A bi-encoder, trained with polyjax {__version__}. It reads up to {limit} tokens of a text."]
    measure = "cosine" if head.normalize else "dot product"
    told.append(f"The score of a query and a document is the {measure} of their vectors.")
    if head.score_scale != 1.0:
        told.append(f"In training it was multiplied by {head.score_scale:g}; the order stays the same.")
    if config.context_tokens != config.candidate_tokens:
        told.append(
            f"In training, queries were truncated to {config.context_tokens} tokens and documents to "
            f"{config.candidate_tokens}."
        )
    prompts = {"query": config.context_prompt, "document": config.candidate_prompt}
    told += [f"The prompt {text!r} is put before each {side}." for side, text in prompts.items() if text]
    if not config.pool_prompts:
        told.append("The tokens of a prompt are attended to, but not pooled.")
    return told


def _of_cross(head: CrossConfig, config: TextConfig, limit: int) -> list[str]:
    told = [f"A cross-encoder, trained with polyjax {__version__}. It reads up to {limit} tokens of a pair."]
    told.append(f"The activation of its score is {head.activation}.")
    if not config.pair_tokens:
        told.append(
            "In training, the texts of a pair were truncated separately: the first to "
            f"{config.context_tokens} tokens, the second to {config.candidate_tokens}."
        )
    return told


def _of_texts(config: TextConfig, tokenizer: HuggingFaceTokenizer) -> list[str]:
    told = []
    if config.max_turns > 1:
        between = " ".join(tokenizer.token(id_) for id_ in tokenizer.separator_ids)
        cut = "; the oldest tokens are truncated first" if config.cut == "oldest" else ""
        told.append(
            f"A conversation is read as its last {config.max_turns} turns, `{between}` between them{cut}."
        )
    if tokenizer.markers == "text":
        told.append("Special tokens written out in a text are ordinary text (`split_special_tokens`).")
    return told


def _page(
    name: str,
    task: str,
    tags: Iterable[str],
    more: Iterable[str],
    told: Iterable[str],
    use: Iterable[str],
) -> str:
    metadata = [f"library_name: {LIBRARY}", f"pipeline_tag: {task}", "tags:", *(f"- {tag}" for tag in tags)]
    lines = ["---", *metadata, *more, "---", "", f"# {name}", "", *told, "", "```python", *use, "```", ""]
    return "\n".join(lines)
