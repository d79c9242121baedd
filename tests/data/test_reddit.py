"""Reddit's dumps: comments that are left out, threads built from parents, buckets on disk."""

import gzip
import json
import random
import shutil

import pytest
from test_token_store import Counting

from conftest import shared_data
from polyjax.data.corpora import reddit
from polyjax.data.corpora.prepare import CorpusConfig, prepare_pieces
from polyjax.data.corpora.reddit import Comment, RedditConfig, conversations, is_english, text_of
from polyjax.data.corpora.sources import find_pieces
from polyjax.data.corpora.store import tokens_of
from polyjax.errors import InputError


def row(id_, parent, thread="s1", body="", author="somebody"):
    return {
        "id": id_,
        "parent_id": f"t3_{thread}" if parent is None else f"t1_{parent}",
        "link_id": f"t3_{thread}",
        "author": author,
        "body": body or f"This is what they say of {id_}",
        "score": 1,
        "subreddit": "any",
    }


def dump(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(source, folder, size=10**9, config=None):
    return [c for piece in find_pieces(source, size=size, folder=folder, reddit=config) for c in piece.read()]


def short(found):
    """Last words of the texts: the ids of the comments, as ``row`` writes them."""
    return [([text.rsplit(" ", 1)[-1] for text in c.turns], c.first_label) for c in found]


def test_paths_through_a_thread_learn_each_reply_once(tmp_path):
    rows = [row("a", None), row("b", "a"), row("c", "b"), row("d", "b"), row("e", "a"), row("f", None)]
    random.Random(0).shuffle(rows)
    rows.sort(key=lambda row: row["id"])
    found = read(f"reddit:{dump(tmp_path / 'RC', rows)}", tmp_path / "parts")
    assert short(found) == [(["a", "b", "c"], 1), (["a", "b", "d"], 2), (["a", "e"], 1)]
    assert {c.id for c in found} == {"s1"}, "held out together"


@pytest.mark.parametrize("seed", range(5))
def test_the_pairs_are_those_of_all_parents_and_replies(seed):
    """Against the definition: a reply's context is all that is above it."""
    draw = random.Random(seed)
    comments = [Comment(str(i), str(draw.randrange(-3, i)), "s", f"t{i}") for i in range(60)]
    above = {"-1": [], "-2": [], "-3": []}
    for comment in comments:
        above[comment.id] = [*above[comment.parent], f"t{comment.id}"]
    draw.shuffle(comments)
    expected = sorted((tuple(path[:-1]), path[-1]) for path in above.values() if len(path) > 1)
    found = [
        (c.turns[:i], c.turns[i])
        for c in conversations("s", comments, max_depth=1000)
        for i in range(c.first_label, len(c.turns))
    ]
    assert sorted(found) == expected


def test_what_is_left_out_ends_its_branch():
    comments = [
        Comment("a", "s", "s", "a"),
        Comment("b", "a", "s", None),
        Comment("c", "b", "s", "c"),
        Comment("d", "c", "s", "d"),
        Comment("e", "a", "s", "e"),
    ]
    assert [c.turns for c in conversations("s", comments, max_depth=9)] == [("a", "e")]


def test_a_comment_whose_parent_is_not_in_the_dump_begins_a_path():
    comments = [Comment("x", "of last month", "s", "x"), Comment("y", "x", "s", "y")]
    assert [c.turns for c in conversations("s", comments, max_depth=9)] == [("x", "y")]


def test_parents_in_a_circle_are_no_path():
    comments = [Comment("x", "y", "s", "x"), Comment("y", "x", "s", "y"), Comment("z", "z", "s", "z")]
    assert list(conversations("s", comments, max_depth=9)) == []


def test_paths_end_at_the_depth(tmp_path):
    chain = [Comment(str(i), str(i - 1), "s", str(i)) for i in range(10)]
    assert [c.turns for c in conversations("s", chain, max_depth=4)] == [("0", "1", "2", "3")]


@pytest.mark.parametrize(
    ("author", "body", "expected"),
    [
        ("a", "  This\n is &lt;it&gt; ", "This is <it>"),
        ("a", "&gt; what you said\n\nand what I say", "and what I say"),
        ("a", "&gt; only what you said", None),
        ("a", "[deleted]", None),
        ("a", "[removed] ", None),
        ("[deleted]", "it is still there", "it is still there"),
        ("AutoModerator", "your post was removed", None),
        ("haikuBOT", "a text of a machine", None),
        ("bottle", "a text of a person", "a text of a person"),
        ("a", "see https://example.org/this", None),
        ("a", "hi", None),
        ("a", "x" * 2049, None),
        ("a", "the " * 129, None),
        ("a", "the " * 128, ("the " * 128).strip()),
        ("a", "é oui, the and to of", None),
        ("a", "я так не думаю, правда", None),
        ("a", "Das ist ja nun wirklich etwas, was niemand jemals wissen wollte", None),
        ("a", "merci beaucoup", "merci beaucoup"),  # too short to tell
    ],
)
def test_which_comments_are_kept(author, body, expected):
    assert text_of(author, body, RedditConfig()) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Ik weet niet of ik daar morgen nog wel tijd voor heb, maar ik laat het weten",
        "Je ne pense pas que ce soit une bonne idée de partir demain matin très tôt",
        "No creo que sea una buena idea salir mañana por la mañana tan temprano",
        "Ich weiß nicht, ob wir das morgen noch schaffen, aber wir können es versuchen",
        "Non credo che sia una buona idea partire domani mattina così presto",
    ],
)
def test_other_languages_are_told(text):
    assert not is_english(text, RedditConfig().english)


def test_hardly_a_turn_of_real_dialogues_is_taken_for_another_language():
    (path, *_) = sorted(shared_data("topical_chat").glob("*.jsonl"))
    turns = [turn for line in path.read_text().splitlines() for turn in json.loads(line)["turns"]]
    assert len(turns) > 1000
    assert sum(is_english(turn, RedditConfig().english) for turn in turns) > 0.99 * len(turns)


def many(n, threads):
    draw = random.Random(1)
    rows = []
    for i in range(n):
        thread = draw.randrange(threads)
        earlier = [row for row in rows if row["link_id"] == f"t3_{thread}"]
        parent = draw.choice(earlier)["id"] if earlier and draw.random() < 0.8 else None
        rows.append(row(f"c{i}", parent, str(thread)))
    return rows


@pytest.mark.parametrize("size", [300, 5000, 10**9])
def test_buckets_and_files_change_nothing_but_the_order(tmp_path, size, monkeypatch):
    rows = many(300, 20)
    whole = read(f"reddit:{dump(tmp_path / 'RC_1', rows)}", tmp_path / "one")
    assert len(whole) > 50
    halves = tmp_path / "halves"
    halves.mkdir()
    (halves / "RC_1.gz").write_bytes(gzip.compress(dump(tmp_path / "x", rows[:150]).read_bytes()))
    dump(halves / "RC_2", rows[150:])
    monkeypatch.setattr(reddit, "BUFFER", 1000)
    found = read(f"reddit:{halves}/RC*", tmp_path / "two", size=size)
    assert sorted((c.id, c.turns, c.first_label) for c in found) == sorted(
        (c.id, c.turns, c.first_label) for c in whole
    )


def test_a_dump_is_prepared_and_a_stopped_preparation_goes_on(tmp_path, monkeypatch):
    for month in (1, 2, 3):
        dump(tmp_path / f"RC_{month}", many(300, 20)[100 * (month - 1) : 100 * month])
    config = CorpusConfig(
        files=(f"reddit:{tmp_path}/RC*",), dir=tmp_path / "prepared", piece_mb=0.005, held_out=0.2
    )
    read_lines, original = [], reddit.comment_of

    def stopping(line, config):
        read_lines.append(line)
        if len(read_lines) == 150:
            raise KeyboardInterrupt
        return original(line, config)

    monkeypatch.setattr(reddit, "comment_of", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare_pieces(config)
    assert len(prepare_pieces(config)) > 2
    assert len(read_lines) == 150 + 200, "the first month was not read again"
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    Counting().save(folder)
    found = tokens_of(config, Counting(), folder)
    expected = read(config.files[0], tmp_path / "parts")
    labels = sum(len(c.turns) - c.first_label for c in expected)
    counted = (
        (tokens.conversations[1:] - tokens.conversations[:-1] - tokens.first_labels).sum()
        for tokens in (found.train, found.valid)
    )
    assert sum(counted) == labels
    left = [path.name for path in (config.dir / "pretraining_parts").rglob("*") if path.is_file()]
    assert set(left) == {"contents.json", "done.json", "removed"}, (
        "comments are removed when they are prepared"
    )


def test_another_month_beside_one_that_was_prepared(tmp_path):
    """Buckets that are gone are not empty ones."""
    for month in (1, 2):
        dump(tmp_path / f"RC_{month}", many(300, 20)[150 * (month - 1) : 150 * month])

    def texts(files):
        config = CorpusConfig(files=(f"reddit:{tmp_path}/{files}",), dir=tmp_path / "prepared")
        return sorted(c.turns for piece in prepare_pieces(config) for c in piece)

    first, both = texts("RC_1"), texts("RC_*")
    expected = read(f"reddit:{tmp_path}/RC_*", tmp_path / "parts")
    assert both == sorted(c.turns for c in expected) and len(both) > len(first) > 10
    shutil.rmtree(tmp_path / "prepared" / "pretraining_piece")
    assert texts("RC_*") == both


def test_odd_rows_of_dumps(tmp_path):
    rows = [
        row("a", None) | {"author": None},
        row("b", "a") | {"body": None},
        row("c", "b"),
        row("d", "a") | {"parent_id": int("a", 36)},
        {**row("e", "d"), "link_id": "s1", "parent_id": "d"},
    ]
    path = tmp_path / "RC"
    path.write_bytes("\r\n\r\n".join(json.dumps(row) for row in rows).encode())
    assert short(read(f"reddit:{path}", tmp_path / "parts")) == [(["a", "d", "e"], 1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"RC:2: expected a comment of Reddit's dump"),
        ('{"body": "a"}', "KeyError"),
        ("[1]", "a list"),
        (json.dumps(row("a", None) | {"body": 1}), "not a text"),
        (json.dumps(row("a", None, thread="\ud800")), "RC:2: "),
        (json.dumps(row("a", None, body="This is \ud800 it")), "RC:2: "),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = dump(tmp_path / "RC", [row("a", None)])
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=message):
        read(f"reddit:{path}", tmp_path / "parts")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_depth": 1}, "at least 2, a pair"),
        ({"min_chars": 0}, "at least 1"),
        ({"english": 1.0}, "a share in [0, 1)"),
        ({"min_chars": 9, "max_chars": 8}, "at most the 8 of `corpus.reddit.max_chars`"),
    ],
)
def test_settings_that_keep_nothing_are_refused(settings, expected):
    name, value = next(iter(settings.items()))
    with pytest.raises(InputError) as caught:
        RedditConfig(**settings)
    found = (caught.value.argument, caught.value.expected, caught.value.got)
    assert found == (f"corpus.reddit.{name}", expected, value)
