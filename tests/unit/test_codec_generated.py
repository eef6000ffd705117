"""Ten thousand generated inputs at the codec: a message that is written again as it is, or one clear refusal."""

from __future__ import annotations

from hivewire.codec import decode, encode
from hivewire.errors import MessageError, Undecodable
from hivewire.testing.generated import generated_bytes, generated_messages

LIMIT = 1 << 20


def test_bytes_are_a_message_or_undecodable() -> None:
    read = 0
    for body in generated_bytes(3, 10_000):
        try:
            message = decode(body)
        except Undecodable:
            continue
        read += 1
        assert decode(encode(message, LIMIT)) == message
    assert 200 < read < 9_000


def test_messages_are_written_or_refused() -> None:
    written = 0
    for message in generated_messages(4, 10_000, "made"):
        try:
            body = encode(message, LIMIT)
        except MessageError:
            continue
        written += 1
        again = decode(body)
        assert decode(encode(again, LIMIT)) == again
        assert again.id == message.id
    assert 500 < written < 9_500


def test_a_seed_makes_the_same_again() -> None:
    assert list(generated_bytes(5, 50)) == list(generated_bytes(5, 50))
    assert list(generated_bytes(5, 50)) != list(generated_bytes(6, 50))
