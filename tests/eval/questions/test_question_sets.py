"""Question sets: the own one, files, mixes, and what belongs to each passage."""

import json
from pathlib import Path

import pytest

from kvblend.core.errors import InvalidRequestError
from kvblend.eval.questions.mixes import load_mixes
from kvblend.eval.questions.question_set import load_questions, take_half
from kvblend.eval.questions.set_surroundings import with_former, with_similar
from tests.eval.questions.articles import make_articles


def test_question_sets(tmp_path: Path) -> None:
    """The own set holds what each question needs among the first passages; SQuAD's shape is read, others refused."""
    own = load_questions(None)
    assert len(own) >= 12
    for question in own:
        assert len(question.passages) == len(set(question.passages)) == 7
        gold = question.answers[0].lower()
        assert any(gold in text.lower() for text in question.passages[:5]), question.question
    assert take_half(own, "first") + take_half(own, "second") == own
    squad = tmp_path / "squad.json"
    paragraphs = [
        {"context": f"Paragraph {number}.", "qas": [{"question": f"{number}?", "answers": [{"text": str(number)}]}]}
        for number in range(5)
    ]
    squad.write_text(json.dumps({"version": "1.1", "data": [{"title": "Numbers", "paragraphs": paragraphs}]}))
    for number, question in enumerate(load_questions(squad)):
        assert question.answers == (str(number),)
        assert set(question.passages) == {f"Paragraph {other}." for other in range(5)}
        for text, around in zip(question.passages, question.surroundings, strict=True):
            assert around.title == "Numbers"
            assert around.preceding == tuple(f"Paragraph {other}." for other in range(int(text[-2])))
    odd = tmp_path / "odd.json"
    odd.write_text('{"question": 1}')
    with pytest.raises(InvalidRequestError, match="shape"):
        load_questions(odd)


def test_mixes(tmp_path: Path) -> None:
    """Two neighbours in their order, one with the answer, three of other articles; halves share no article."""
    squad = make_articles(tmp_path / "squad.json", 10)
    mixes = load_mixes(squad)
    assert mixes == load_mixes(squad)
    places = set()
    for question in mixes:
        titles = [around.title for around in question.surroundings]
        twice = [place for place, title in enumerate(titles) if titles.count(title) == 2]
        assert len(titles) == 5 and len(set(titles)) == 4 and len(twice) == 2
        assert question.surroundings[twice[1]].preceding[-1] == question.passages[twice[0]]
        assert any(question.answers[0] in question.passages[place] for place in twice)
        places.add(tuple(twice))
    assert len(places) >= 8
    assert len({question.question for question in mixes}) == len(mixes)
    asked = [question.answers[0][-1] for question in mixes[:5]]
    assert set(asked) == {"0", "1", "2"}, "a few questions ask of early and of late paragraphs"
    halves = [take_half(mixes[:-1], half) for half in ("first", "second")]
    assert len(halves[0]) == len(halves[1])
    first, second = ({around.title for one in half for around in one.surroundings} for half in halves)
    assert not first & second
    with pytest.raises(InvalidRequestError, match="mixes need 8"):
        load_mixes(make_articles(tmp_path / "few.json", 6))


def test_set_surroundings(tmp_path: Path) -> None:
    """What is like a passage, and what once stood before it, the more of it here the better."""
    mixes = load_mixes(make_articles(tmp_path / "squad.json", 8))
    for question in with_former(with_similar(mixes)):
        for place, (text, around) in enumerate(zip(question.passages, question.surroundings, strict=True)):
            assert text not in around.similar and len(around.similar) == 4
            assert around.similar[0].split(",")[0] == text.split(",")[0], "of the same article"
            prompts = [one.passages for one in mixes if text in one.passages and one.question != question.question]
            before = [passages[: passages.index(text)] for passages in prompts]
            now = set(question.passages[:place])
            assert around.former in before or (not before and around.former == ())
            assert all(len(now & set(around.former)) >= len(now & set(one)) for one in before)
