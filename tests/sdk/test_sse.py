"""The event decoder."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kvblend.sdk.sse import EventDecoder, ServerSentEvent

LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=12)
NAME = LINE.filter(lambda text: bool(text))


@given(
    events=st.lists(st.builds(ServerSentEvent, event=NAME, data=LINE | st.just("a\nb")), max_size=5),
    line_end=st.sampled_from(["\n", "\r\n"]),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_events_survive_any_cut(events: list[ServerSentEvent], line_end: str, cuts: list[int]) -> None:
    lines: list[str] = []
    for event in events:
        lines += [": comment", f"event: {event.event}", *(f"data: {line}" for line in event.data.split("\n")), ""]
    text = "".join(line + line_end for line in lines)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    decoder = EventDecoder()
    decoded = [e for a, b in itertools.pairwise(edges) for e in decoder.feed(text[a:b])]
    assert decoded == events


def test_an_event_cut_off_by_the_end_is_dropped() -> None:
    assert list(EventDecoder().feed("data: 1\n\ndata: 2\n")) == [ServerSentEvent("message", "1")]
