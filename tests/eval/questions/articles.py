"""A small set in SQuAD's shape."""

import json
from pathlib import Path


def make_articles(path: Path, num_articles: int) -> Path:
    """A set in SQuAD's shape: articles of three paragraphs, a question each."""
    articles = []
    for article in range(num_articles):
        paragraphs = [
            {
                "context": f"Topic{article}, paragraph {number}. It says the number {article}{number}. " * 3,
                "qas": [{"question": f"{article}, {number}?", "answers": [{"text": f"{article}{number}"}]}],
            }
            for number in range(3)
        ]
        articles.append({"title": f"The_article_{article}", "paragraphs": paragraphs})
    path.write_text(json.dumps({"data": articles}))
    return path
