"""Text: secrets are hidden, line breaks and control characters are shown, everything else stays."""

import pytest

from convoy.core.errors import UsageError
from convoy.core.files import json_value
from convoy.core.text import is_count, one_line, without_secrets


@pytest.mark.parametrize("text", ["\u00b2", "\u0663", "", "-1", "1_0", " 1", "9" * 5000])
def test_counts_are_ascii_digits(text):
    assert not is_count(text)
    assert is_count("007")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--data=s3://AKIA:wJal/rXU+tn@bucket/data", "--data=s3://AKIA:***@bucket/data"),
        ("--data=https://me:pass-word@host:8080/data", "--data=https://me:***@host:8080/data"),
        ("https://host/a?X-Amz-Signature=12ab&part=3", "https://host/a?X-Amz-Signature=***&part=3"),
        ("gs://b/a?part=3&access_token=ya29.x", "gs://b/a?part=3&access_token=***"),
        ("'--env=WANDB_API_KEY=abc def' x", "'--env=WANDB_API_KEY=*** def' x"),
        ("--env=HF_TOKEN=hf_12", "--env=HF_TOKEN=***"),
        ("hdfs://user@name:9000/data", "hdfs://user@name:9000/data"),
        ("convoy train --data=a@b --image_key=image/encoded", "convoy train --data=a@b --image_key=image/encoded"),
        ("https://host/photos?key_frames=3", "https://host/photos?key_frames=3"),
    ],
)
def test_secrets_are_hidden(text, expected):
    assert without_secrets(text) == expected


def test_json_values_have_no_secrets():
    value = {"data": ["https://a:b@c", 3, float("nan")], "nested": {"url": "https://c?token=1"}}
    assert json_value(value) == {"data": ["https://a:***@c", 3, None], "nested": {"url": "https://c?token=***"}}


def test_text_of_a_file_on_one_line():
    assert one_line("K\u00e4se\r\n\x1b[2J\u2028 end") == "K\u00e4se\\r\\n\\x1b[2J\\u2028 end"


def test_an_error_shows_both_ends_of_a_long_message():
    message = str(UsageError("config.model.weights=" + "x" * 10**6 + ": is missing."))
    assert message.startswith("config.model.weights=x") and message.endswith("x: is missing.") and len(message) < 5_000
