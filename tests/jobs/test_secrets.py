import pytest

from shardrank.jobs.secrets import redacted, redacted_argument

PLAIN = "s3://bucket/in?region=us-east-1&endpoint_override=127.0.0.1:9000"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://AKIA:wJalr%2FX@bucket/in", "s3://***@bucket/in"),
        (PLAIN, PLAIN),
        (
            "s3://b/k?access_key=AKIA&secret_key=wJalr&region=eu-west-1",
            "s3://b/k?access_key=***&secret_key=***&region=eu-west-1",
        ),
        ("https://h/a.png?X-Amz-Signature=abc&w=1", "https://h/a.png?X-Amz-Signature=***&w=1"),
        ("cannot open s3://A:B@bucket: no", "cannot open s3://***@bucket: no"),
        ("/data/a key.parquet --model m", "/data/a key.parquet --model m"),
    ],
)
def test_credentials_are_left_out_and_nothing_else(text, expected):
    assert redacted(text) == expected


def test_an_argument_that_is_a_uri_is_one_to_its_end():
    """Its key may have spaces, and a `#`."""
    said = redacted_argument("--output=s3://A:B@bucket/it's in#1?region=us&secret_key=wJalr")
    assert said == "--output=s3://***@bucket/it's in#1?region=us&secret_key=***"
    assert redacted_argument("pages/[ab] c.parquet") == "pages/[ab] c.parquet"
