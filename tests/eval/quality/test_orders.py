"""The orders of a prompt's passages."""

from kvblend.eval.quality.orders import ORDERS, ordered
from kvblend.eval.questions.question_set import Article, Question, Surroundings

A = Article("A", ("a0", "a1", "a2"), (None, None, None))
B = Article("B", ("b0", "b1"), (None, None))


def question(*passages: str) -> Question:
    articles = {"a": A, "b": B}
    places = {text: (articles[text[0]], int(text[1])) for text in passages if text[0] in articles}
    surroundings = [
        places[text][0].surroundings(places[text][1]) if text in places else Surroundings() for text in passages
    ]
    return Question("?", (), passages, tuple(surroundings))


def test_orders() -> None:
    """Each is the same passages, with what belongs to them; those behind the prompt stay where they are."""
    asked = question("a1", "x", "b1", "a2", "b0", "y", "a0")
    expected = {
        "rank": ["a1", "x", "b1", "a2", "b0", "y", "a0"],
        "reversed": ["y", "b0", "a2", "b1", "x", "a1", "a0"],
        "document": ["a1", "a2", "x", "b0", "b1", "y", "a0"],
        "fit": ["a1", "a2", "x", "b0", "b1", "y", "a0"],
    }
    assert set(expected) == set(ORDERS)
    for name, texts in expected.items():
        own = ordered(asked, name, num_passages=6)
        assert list(own.passages) == texts, name
        assert own.surroundings == question(*texts).surroundings
    gap = ordered(question("a2", "x", "a0"), "fit", num_passages=3)
    assert gap.passages == ("a2", "x", "a0"), "a passage between them is not there"
    assert ordered(question("a2", "x", "a0"), "document", num_passages=3).passages == ("a0", "a2", "x")
