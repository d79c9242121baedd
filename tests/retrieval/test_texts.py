"""Which texts an index holds, and by which ids and texts they are named."""

import pytest
from test_store import Encoder, content, fingerprints  # noqa: F401  # a fixture

from polyjax.errors import InputError
from polyjax.retrieval.index.build import add_to_index, build_index
from polyjax.retrieval.index.store import in_memory, open_index
from polyjax.retrieval.index.texts import ids_of

GIVEN = [
    "yes",
    "YES ",
    "no way",
    "y\u200bes",
    "cafe\u0301",
    "of\ncourse",
    "caf\u00e9",
    "C++",
    "C#",
    "1+1",
    "1-1",
]
KEPT = {0: "yes", 2: "no way", 4: "cafe\u0301", 5: "of\ncourse", 7: "C++", 8: "C#", 9: "1+1", 10: "1-1"}


def test_ids_are_places_in_the_list_that_was_given(tmp_path):
    """Also where copies of earlier texts are left out: what is kept beside the list belongs to the ids."""
    counted = []
    build_index(tmp_path / "i", GIVEN, Encoder(), progress=counted.append)
    index = open_index(tmp_path / "i")
    assert dict(index.items()) == KEPT and sum(counted) == len(GIVEN)
    assert {id_: text for id_, (text, _) in content(index).items()} == KEPT
    assert index.manifest.next_id == len(GIVEN)
    for row, (id_, text) in enumerate(KEPT.items()):
        assert (index.id(row), index.text(row)) == (id_, text)


def test_additions_have_the_ids_that_follow_and_what_is_there_keeps_its_own(tmp_path):
    build_index(tmp_path / "i", GIVEN, Encoder())
    ids = add_to_index(tmp_path / "i", ["Maybe", "No  WAY", "maybe", "c++", "well"], Encoder())
    assert ids == [11, 2, 11, 7, 12]
    assert dict(open_index(tmp_path / "i").items()) == KEPT | {11: "Maybe", 12: "well"}
    assert add_to_index(tmp_path / "i", ["WELL", "well"], Encoder()) == [12, 12]
    assert len(open_index(tmp_path / "i").segments) == 2, "nothing was new"


def old(texts):
    """An index that was built before copies were found by the rule."""
    return in_memory(texts, Encoder().vectors(texts))


@pytest.mark.parametrize(
    ("held", "named", "ids"),
    [
        (["hi", " hi"], [" hi"], [1]),
        (["hi", " hi"], ["hi"], [0]),
        (["of\ncourse", "no"], ["of course"], [0]),
        (["of\ncourse", "of course"], ["of course"], [1]),
        (["of\ncourse", "of course"], ["of\ncourse"], [0]),
        (["Yes", "no"], ["no", "yes", "YES"], [0, 1]),
        (["same", "same", "other"], ["same"], [0, 1]),
    ],
)
def test_a_text_names_the_candidate_of_exactly_that_text_or_the_one_it_is_by_the_rule(held, named, ids):
    assert ids_of(old(held), named) == ids


def test_a_text_that_may_be_several_candidates_names_none():
    with pytest.raises(InputError) as error:
        ids_of(old(["Yes", "yes", "no"]), ["YES"])
    assert error.value.argument == "texts[0]" and "[0, 1]" in error.value.problem
    with pytest.raises(InputError) as error:
        ids_of(old(["Yes", "yes", "no"]), ["no", "never", "neither"])
    assert error.value.argument == "texts[1]" and error.value.got == "never"
    assert error.value.problem == "not in the index (of 3 texts, 2 are not)"
