"""Which model an index belongs to: digests of values, and indexes of before that still open."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from conftest import HEADS, tiny
from polyjax import BiConfig, Ranker, make_scorer
from polyjax.data.text import TextConfig, TextEncoder
from polyjax.errors import InputError
from polyjax.inference.programs import Compiled
from polyjax.inference.scorer import TextScorer
from polyjax.retrieval.index.fingerprint import READABLE, VERSION, canonical, fingerprint
from polyjax.retrieval.index.manifest import read_manifest
from polyjax.retrieval.index.store import open_index
from train.toy import Letters

GOLDEN = Path(__file__).parents[1] / "golden"
OLD = sorted(path.name for path in (GOLDEN / "indexes").iterdir() if path.is_dir())


def scorer_of(head="poly-basic", *, text=None, **shape) -> TextScorer:
    config = text or TextConfig(context_tokens=16, candidate_tokens=8, buckets=(8, 16))
    scorer = make_scorer(tiny(**shape), HEADS[head] if isinstance(head, str) else head, rngs=nnx.Rngs(0))
    return TextScorer(scorer, TextEncoder(Letters(), config))


@pytest.fixture(scope="module", params=OLD)
def before(request, parlai_models):
    """A model, and the folder of an index that an earlier version built with it."""
    name = request.param
    model = parlai_models / name / "model"
    ranker = Ranker.from_parlai(model) if model.exists() else Ranker.from_encoder(name)
    return ranker, GOLDEN / "indexes" / name


def test_indexes_of_version_5_open_and_are_searched(before):
    ranker, folder = before
    expected = json.loads((GOLDEN / "indexes" / "scores.json").read_text())[folder.name]
    index = ranker.open_index(folder)
    assert index.texts == ["yes", "Yes", "no way", "no way ", "of\ncourse", "naïve ☕"]
    found = {str(one.id): one.score for one in index.search("hi there", 6)}
    assert list(found) == list(expected)
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4, atol=1e-4)


def test_indexes_of_version_5_are_changed(before, tmp_path):
    ranker, folder = before
    shutil.copytree(folder, tmp_path / "i")
    index = ranker.open_index(tmp_path / "i")
    identity = index.candidates.identity
    assert index.add(["of course", "new"]) == [4, 6]
    assert index.remove(texts=["no way "]) == 1, "exactly that text, though another is one with it"
    assert index.ids == [0, 1, 2, 4, 5, 6] and read_manifest(tmp_path / "i").version == 5
    assert ranker.open_index(tmp_path / "i").texts == index.texts
    assert identity != index.candidates.identity


def test_indexes_of_version_5_belong_to_their_model_only(before, tmp_path):
    ranker, folder = before
    text = ranker.scorer.text
    scorer = nnx.merge(ranker.scorer.model._graph, ranker.scorer.model._state)
    longer = dataclasses.replace(text.config, candidate_tokens=text.config.candidate_tokens - 1)
    other = TextScorer(scorer, TextEncoder(text.tokenizer, longer))
    with pytest.raises(InputError) as error:
        open_index(folder, scorer=other)
    assert error.value.problem == "the index was made with another model (other lengths)"


def test_the_identity_of_an_index_did_not_change(before):
    """First stages on disk are known by it: this is what version 5 hashed of a manifest."""
    _, folder = before
    manifest = read_manifest(folder)
    assert f"({manifest.model.key}, {manifest.dtype!r})" == repr((manifest.model, manifest.dtype))


def test_a_setting_with_a_default_changes_no_digest(monkeypatch):
    """As when a later version has one more."""
    scorer = scorer_of()
    expected = {version: fingerprint(scorer, version) for version in READABLE}

    def with_one_more(config):
        more = dataclasses.make_dataclass(
            type(config).__name__,
            [("brand_new", int, dataclasses.field(default=3, kw_only=True))],
            bases=(type(config),),
            frozen=True,
            kw_only=True,
            repr=True,
        )
        return more(**{field.name: getattr(config, field.name) for field in dataclasses.fields(config)})

    settings = scorer.settings
    head = with_one_more(settings.head)
    monkeypatch.setattr(
        scorer, "settings", dataclasses.replace(settings, encoder=with_one_more(settings.encoder), head=head)
    )
    monkeypatch.setattr(scorer.text, "config", with_one_more(scorer.text.config))
    assert {version: fingerprint(scorer, version) for version in READABLE} == expected
    changed = dataclasses.replace(head, brand_new=4)
    monkeypatch.setattr(scorer, "settings", dataclasses.replace(settings, head=changed))
    for version in READABLE:
        assert fingerprint(scorer, version).mismatch(expected[version])


def test_every_setting_that_counts_is_in_the_digest():
    one = fingerprint(scorer_of("bi-mean"))
    others = {
        "architecture": scorer_of(BiConfig(normalize=True)),
        "lengths": scorer_of(
            "bi-mean", text=TextConfig(context_tokens=16, candidate_tokens=8, buckets=(16,))
        ),
        "arithmetic": scorer_of("bi-mean", dtype="bfloat16"),
    }
    for name, other in others.items():
        found = fingerprint(other)
        assert getattr(found, name) != getattr(one, name)
        assert found.mismatch(one) and not found.mismatch(found)
    assert fingerprint(scorer_of("bi-mean")) == one


def test_what_is_at_its_default_is_left_out():
    assert canonical(BiConfig()) == {"type": "BiConfig"}
    assert canonical(TextConfig(buckets=(8, 16))) == {"type": "TextConfig", "buckets": [8, 16]}

    @dataclasses.dataclass(frozen=True)
    class Part:
        name = "mine"
        version = 2
        inner: BiConfig = dataclasses.field(default_factory=BiConfig)
        sizes: tuple[int, ...] = ()

    assert canonical(Part()) == {"type": "Part", "name": "mine", "version": 2}
    inner = {"type": "BiConfig", "normalize": True}
    assert canonical(Part(BiConfig(normalize=True), (1, 2))) | {"name": 0, "version": 0} == {
        "type": "Part",
        "name": 0,
        "version": 0,
        "inner": inner,
        "sizes": [1, 2],
    }


def test_an_index_of_a_later_version_is_kept(tmp_path, parlai_models):
    ranker = Ranker.from_parlai(parlai_models / "bi_shared_max_trained" / "model")
    ranker.index(["a", "b"], tmp_path / "i")
    path = tmp_path / "i" / "manifest.json"
    data = json.loads(path.read_text())
    assert data["version"] == VERSION
    path.write_text(json.dumps(data | {"version": VERSION + 1}))
    with pytest.raises(InputError) as error:
        ranker.open_index(tmp_path / "i")
    assert (
        error.value.expected == f"an index of version {VERSION}"
        and error.value.got == f"version {VERSION + 1}"
    )
    with pytest.raises(InputError) as error:
        ranker.index(["a", "c"], tmp_path / "i")
    assert error.value.fix.startswith("set `replace`")
    assert len(ranker.index(["a", "c"], tmp_path / "i", replace=True)) == 2


def test_weights_are_hashed_once(tmp_path, monkeypatch):
    """However many indexes are built, opened and added to; again where they have changed."""
    scorer = scorer_of("bi-mean")
    hashed = []
    parameters = Compiled.parameters
    monkeypatch.setattr(Compiled, "parameters", lambda self: hashed.append(1) or parameters(self))
    ranker = Ranker(scorer)
    for name in ("i", "j"):
        index = ranker.index(["ab", "cd"], tmp_path / name)
        index.add(["ef"])
        index.remove(ids=[0])
        ranker.open_index(tmp_path / name)
    assert len(hashed) == 1
    scorer.update(make_scorer(tiny(), HEADS["bi-mean"], rngs=nnx.Rngs(1)))
    with pytest.raises(InputError) as error:
        ranker.open_index(tmp_path / "i")
    assert len(hashed) == 2 and error.value.problem.endswith("(other weights)")
