"""Messages survive any cutting of the stream."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from wasmlet.runtime.framing import Message, Unpacker, pack

MESSAGES = st.lists(
    st.dictionaries(st.text(), st.one_of(st.none(), st.integers(), st.text(), st.lists(st.text()))), max_size=5
)


@given(MESSAGES, st.integers(min_value=1, max_value=50))
def test_messages_survive_any_cutting(messages: list[Message], size: int) -> None:
    stream = b"".join(map(pack, messages))
    unpacker = Unpacker()
    received: list[Message] = []
    for start in range(0, len(stream), size):
        received.extend(unpacker.feed(stream[start : start + size]))
    assert received == messages
