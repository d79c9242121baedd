"""Warnings and errors about texts that are too long for the model."""

from polyjax.serve.model import Cut, Model, Rows


def warnings_of(model: Model, rows: Rows, cut: Cut) -> list[str]:
    """Warnings about truncated texts, one line for contexts and one for candidates.

    Args:
        model: the model that reads them.
        rows: the texts as token ids.
        cut: the truncation that the request asked for.
    """
    found = []
    together = f"a query and a document have at most {model.pair_tokens} tokens together"
    if rows.cut_contexts:
        what = "the query was" if len(rows.contexts) == 1 else f"{rows.cut_contexts} contexts were"
        side = "last" if model.reads_end else "first"
        most = f"the {side} {model.limit('context')} tokens of at most {model.max_turns} turns are read"
        found.append(f"{what} cut: {together if model.pair_tokens else most}")
    if rows.cut_candidates:
        some = f"{len(rows.cut_candidates)} of {len(rows.candidates)} documents were"
        most = min(cut.tokens or model.limit("candidate"), model.limit("candidate"))
        asked = cut.tokens is not None or not model.pair_tokens
        found.append(f"{some} cut to {most} tokens" if asked else f"{some} cut: {together}")
    return found


def refusal_of(model: Model, rows: Rows) -> str:
    """The error message for a request with too long texts that must not be truncated."""
    if model.pair_tokens and rows.cut_candidates:
        both = f"document {rows.cut_candidates[0]} and its query"
        return f"{both} are longer than {model.pair_tokens} tokens together; `truncate` cuts them"
    if rows.cut_contexts:
        most = model.pair_tokens or model.limit("context")
        return f"a query is longer than {most} tokens or {model.max_turns} turns"
    most = model.limit("candidate")
    return f"document {rows.cut_candidates[0]} is longer than {most} tokens; `truncate` cuts it"
