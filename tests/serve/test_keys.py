import base64
import hashlib
import hmac
import pickle
import re
from contextlib import nullcontext

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.datastructures import Headers

from shardrank.serve.deployment import AppArguments, keys_of
from shardrank.serve.errors import Unauthorized
from shardrank.serve.gate.key_file import (
    MAX_KEY_CHARACTERS,
    ApiKey,
    environment_keys,
    hash_key,
    new_key,
    read_keys,
)
from shardrank.serve.gate.keys import (
    MAX_HEADER_CHARACTERS,
    ApiKeys,
    check_exposed,
    is_local_name,
)

FIRST, SECOND, THIRD = "first-key-of-three", "second-key-of-three", "third:key/of+three=="
THREE = ApiKeys(environment_keys(f"{FIRST},{SECOND},{THIRD}"))
HASH, OTHER_HASH = hash_key(FIRST), hash_key(SECOND)


def basic(user_and_password: str | bytes) -> str:
    if isinstance(user_and_password, str):
        user_and_password = user_and_password.encode()
    return "Basic " + base64.b64encode(user_and_password).decode()


def file_of(tmp_path, text: str | bytes):
    path = tmp_path / "keys.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(headers, keys: ApiKeys = THREE) -> str:
    with pytest.raises(Unauthorized) as caught:
        keys.check(headers)
    return str(caught.value)


# Keys and hashes


def test_a_new_key_is_long_random_fit_for_a_header_and_accepted_from_the_environment():
    key = new_key()
    assert re.fullmatch(r"sr-[A-Za-z0-9_-]{43}", key) and key != new_key()
    keys = ApiKeys.of(None, environment_keys(key))
    assert keys.check({"authorization": f"Bearer {key}"}).name == "env-1"


def test_the_hash_is_what_sha256sum_prints():
    assert hash_key("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_neither_keys_nor_hashes_are_printed():
    assert FIRST not in repr(THREE) and HASH not in repr(THREE)


# The file


def test_a_file_gives_names_hashes_and_limits(tmp_path):
    path = file_of(
        tmp_path,
        f'[keys.team]\nsha256 = "{HASH.upper()}"\nrequests_per_minute = 600\nmax_concurrent = 8\n'
        f'[keys.other]\nsha256 = "{OTHER_HASH}"\n',
    )
    assert read_keys(path) == [ApiKey("team", HASH, 600, 8), ApiKey("other", OTHER_HASH)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", ["no keys"]),
        ("[keys]", ["no keys"]),
        ("keys = 3", ["no keys"]),
        ("[keys.a", ["not a TOML file"]),
        (b"\xff\xfe", ["not a TOML file"]),
        (f'[key.a]\nsha256 = "{HASH}"', ["'key'"]),
        (f'port = 1\n[keys.a]\nsha256 = "{HASH}"', ["'port'"]),
        (f'[keys]\na = "{HASH}"', ["'a'", "[keys.a]"]),
        (f'[keys.a]\nsha256 = "{HASH}"\nrpm = 3', ["'a'", "'rpm'", "requests_per_minute"]),
        (f'[keys.a]\nsha256 = "{HASH}"\nname = "b"', ["'a'", "'name'"]),
        ("[keys.a]\nmax_concurrent = 3", ["'a'", "sha256", "missing"]),
        ('[keys.a]\nsha256 = "abc"', ["'a'", "sha256", "64"]),
        (f'[keys.a]\nsha256 = "{HASH[:-1]}g"', ["'a'", "sha256", "64"]),
        (f'[keys.a]\nsha256 = "{HASH}0"', ["'a'", "sha256", "64"]),
        (f'[keys.a]\nsha256 = "{HASH}\\n"', ["'a'", "sha256", "64"]),
        ("[keys.a]\nsha256 = 12", ["'a'", "sha256", "64"]),
        (f'[keys.a]\nsha256 = "{HASH}"\n[keys.b]\nsha256 = "{HASH}"', ["'a'", "'b'", "sha256"]),
        (
            f'[keys.a]\nsha256 = "{HASH}"\n[keys.b]\nsha256 = "{HASH.upper()}"',
            ["'a'", "'b'", "sha256"],
        ),
        (f'[keys."a\\nb"]\nsha256 = "{HASH}"', ["'a\\nb'", "name"]),
        (f'[keys.""]\nsha256 = "{HASH}"', ["''", "name"]),
    ],
)
def test_a_wrong_file_is_refused_by_file_key_and_field(tmp_path, text, told):
    path = file_of(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        read_keys(path)
    assert [each for each in [str(path), *told] if each not in str(caught.value)] == []


@pytest.mark.parametrize("limit", ["requests_per_minute", "max_concurrent"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "true", '"60"', "inf"])
def test_a_limit_is_a_whole_number_above_0(tmp_path, limit, value):
    path = file_of(tmp_path, f'[keys.team]\nsha256 = "{HASH}"\n{limit} = {value}')
    with pytest.raises(ValueError, match=f"keys.toml: key 'team': {limit} must be"):
        read_keys(path)


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(ValueError) as caught:
        ApiKeys.of(path, environment_keys(FIRST))
    assert str(caught.value).startswith(f"{path}: cannot be read: ")


def test_a_key_in_the_place_of_its_hash_is_not_repeated(tmp_path):
    key = new_key()
    with pytest.raises(ValueError) as caught:
        read_keys(file_of(tmp_path, f'[keys.a]\nsha256 = "{key}"'))
    assert key not in str(caught.value) and key.lower() not in str(caught.value)


# The environment


@pytest.mark.parametrize(
    "text", [f"{FIRST},{SECOND}", f"\n{FIRST}\r\n {SECOND} \n", f"{FIRST},,{SECOND},"]
)
def test_the_environments_keys_are_separated_by_commas_or_newlines(text):
    assert environment_keys(text) == (ApiKey("env-1", HASH), ApiKey("env-2", OTHER_HASH))


@pytest.mark.parametrize(
    ("bad", "rule"),
    [
        ("short-of-sixteen"[:15], "15 characters"),
        ("x" * (MAX_KEY_CHARACTERS + 1), "1025 characters"),
        ("a key of two words", "a space"),
        ("schlüssel-schlüssel", "outside ASCII"),
        ("a-key-with-\x00-in-it", "outside ASCII"),
        (FIRST, "have the same sha256"),
    ],
)
def test_a_key_that_is_weak_cannot_be_sent_or_comes_twice_is_refused_by_its_number(bad, rule):
    with pytest.raises(ValueError, match=f"env-2.*{rule}") as caught:
        environment_keys(f"{FIRST},{bad}")
    assert bad not in str(caught.value) and FIRST not in str(caught.value)


def test_sixteen_characters_are_enough():
    assert len(environment_keys("short-of-sixteen")) == 1


@pytest.mark.parametrize("text", ["", " ", ",\n,"])
def test_an_environment_that_is_set_but_empty_does_not_open_the_endpoint(text):
    with pytest.raises(ValueError, match="set but empty"):
        environment_keys(text)


# File and environment together


def test_keys_of_the_file_and_of_the_environment_both_count(tmp_path):
    path = file_of(tmp_path, f'[keys.team]\nsha256 = "{HASH}"')
    keys = ApiKeys.of(path, environment_keys(SECOND))
    given = [{"authorization": f"Bearer {key}"} for key in (FIRST, SECOND)]
    assert [keys.check(headers).name for headers in given] == ["team", "env-1"]


@pytest.mark.parametrize(
    ("name", "environment", "rule"),
    [("team", FIRST, "same sha256"), ("env-1", SECOND, "two keys have the name 'env-1'")],
)
def test_the_file_and_the_environment_may_not_share_a_hash_or_a_name(
    tmp_path, name, environment, rule
):
    path = file_of(tmp_path, f'[keys.{name}]\nsha256 = "{HASH}"')
    with pytest.raises(ValueError, match=rule):
        ApiKeys.of(path, environment_keys(environment))


@pytest.mark.parametrize(("keys", "is_open"), [((), False), (THREE.keys, True)])
def test_an_endpoint_has_keys_or_is_open(keys, is_open):
    with pytest.raises(ValueError, match="is_open must be"):
        ApiKeys(keys, is_open)


def test_a_key_that_is_taken_out_of_the_file_is_out_without_a_restart(tmp_path, monkeypatch):
    monkeypatch.setattr("shardrank.serve.gate.keys._LOOK_EVERY_S", 0.0)
    path = file_of(tmp_path, f'[keys.team]\nsha256 = "{HASH}"')
    keys = ApiKeys.of(path, environment_keys(SECOND))
    first, second = ({"authorization": f"Bearer {key}"} for key in (FIRST, SECOND))
    assert (keys.check(first).name, keys.check(second).name) == ("team", "env-1")
    path.write_text("[keys.team")  # half written
    assert keys.check(first).name == "team"
    path.write_text(f'[keys.other]\nsha256 = "{hash_key(THIRD)}"')
    with pytest.raises(Unauthorized):
        keys.check(first)
    assert keys.check({"authorization": THIRD}).name == "other"
    assert keys.check(second).name == "env-1" and not keys.is_open


def test_what_travels_to_the_replicas_has_hashes_in_the_place_of_keys():
    sent = AppArguments(model="m").settings(environment_keys(FIRST))
    assert FIRST.encode() not in pickle.dumps(sent) and FIRST not in repr(sent)
    assert keys_of(sent).check({"authorization": FIRST}).name == "env-1"


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        *(("localhost", True), ("LOCALHOST:8000", True), ("127.0.0.1:8000", True)),
        *(("127.9.9.9", True), ("[::1]:8000", True), ("[::1]", True)),
        *(("evil.example:8000", False), ("localhost.evil.example", False), ("", False)),
        *(("127.0.0.1.nip.io", False), ("10.0.0.1:8000", False), ("[::2]:8000", False)),
    ],
)
def test_hosts_by_which_a_local_server_is_called(host, is_local):
    assert is_local_name(host) == is_local


# Headers


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ({"authorization": f"Bearer {THIRD}"}, THIRD),
        ({"authorization": f"bEARER   {THIRD} "}, THIRD),
        ({"authorization": THIRD}, THIRD),
        ({"authorization": basic(f":{THIRD}")}, THIRD),
        ({"authorization": basic(f"anybody:{THIRD}")}, THIRD),
        ({"authorization": basic(f"jürgen:{THIRD}")}, THIRD),
        ({"authorization": basic(f"anybody:{THIRD}").replace("Basic", "BASIC")}, THIRD),
        ({"authorization": basic(SECOND)}, SECOND),  # the user name, without a password
        ({"authorization": basic(f"{SECOND}:")}, SECOND),
        ({"authorization": basic(f"{FIRST}:{SECOND}")}, SECOND),
        ({"api-key": FIRST}, FIRST),
        ({"api-key": SECOND}, SECOND),
        ({"api-key": THIRD}, THIRD),
        ({"x-api-key": f" {THIRD}"}, THIRD),
        (Headers({"AUTHORIZATION": f"Bearer {THIRD}"}), THIRD),
        (Headers({"Api-Key": THIRD}), THIRD),
        (Headers({"X-API-Key": THIRD}), THIRD),
    ],
    ids=str,
)
def test_a_key_is_taken_from_every_header_that_clients_send(headers, key):
    name = f"env-{1 + [FIRST, SECOND, THIRD].index(key)}"
    assert THREE.check(headers) == ApiKey(name, hash_key(key))


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer wrong", "api-key": FIRST, "x-api-key": FIRST},
        {"api-key": "wrong", "x-api-key": FIRST},
    ],
)
def test_a_right_key_after_a_wrong_one_does_not_count(headers):
    assert "not one that" in refusal(headers)
    first, *_ = headers
    assert THREE.check(headers | {first: FIRST}).name == "env-1"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": "localhost"},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": basic(":")},
        {"authorization": "", "api-key": FIRST},
        {"x-api-key": " "},
    ],
    ids=str,
)
def test_a_request_without_a_key_is_told_how_to_send_one(headers):
    assert "Authorization: Bearer KEY" in refusal(headers)


@pytest.mark.parametrize(
    "value",
    [
        "Bearer wrong",
        f"Bearer {FIRST[:-1]}",
        f"Bearer {FIRST}x",
        f"Bearer {FIRST.upper()}",
        f"Bearer {HASH}",
        f"Digest {FIRST}",
        f"Bearer {FIRST},{SECOND}",
        f"Bearer\u00a0{FIRST}",
        "Bearer ключ",
        "Bearer \ud800",
        "Bearer \x00",
        "Bearer " + "x" * 1_000_000,
        "Basic " + "A" * 1_000_000,
        "Basic ====",
        "Basic not base64!",
        "Basic QQ",
        basic(f"user:{FIRST}").rstrip("="),
        basic(b"user:\xff\xfe"),
        basic(f"{FIRST}:wrong"),
    ],
    ids=lambda value: ascii(value[:40]),
)
def test_a_wrong_key_and_garbage_are_unauthorized_and_not_repeated(value):
    message = refusal({"authorization": value})
    assert "Bearer KEY" not in message and value.split(" ")[-1][:100] not in message


def test_the_longest_key_fits_a_header_and_one_character_more_does_not():
    key = "k" * MAX_KEY_CHARACTERS
    keys = ApiKeys.of(None, environment_keys(key))
    assert keys.check({"authorization": basic(f"{'u' * 1000}:{key}")}).name == "env-1"
    room = MAX_HEADER_CHARACTERS - len(key)
    assert keys.check({"api-key": key + " " * room}).name == "env-1"
    assert "not one that" in refusal({"api-key": key + " " * (room + 1)}, keys)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["authorization", "api-key", "x-api-key"]),
        st.one_of(
            st.text(),
            st.builds("{} {}".format, st.sampled_from(["Bearer", "basic", "Token"]), st.text()),
            st.binary().map(basic),
        ),
    )
)
def test_no_header_that_anybody_made_up_does_more_than_be_refused(headers):
    assert refusal(headers)


@pytest.mark.parametrize("key", [FIRST, SECOND, THIRD, "wrong"])
def test_every_hash_is_compared_in_constant_time_whichever_key_is_given(monkeypatch, key):
    compared, compare = [], hmac.compare_digest

    def recorded(a, b):
        compared.append((a, b))
        return compare(a, b)

    monkeypatch.setattr(hmac, "compare_digest", recorded)
    if key == "wrong":
        refusal({"api-key": key})
    else:
        THREE.check({"api-key": key})
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert compared == [(digest, each.sha256) for each in THREE.keys]


# Without keys


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer any"}, {"api-key": "é" * 9999}])
def test_an_open_endpoint_knows_everybody_as_one_caller_without_limits(headers):
    caller = ApiKeys.open().check(headers)
    assert caller.name == "anonymous"
    assert caller.requests_per_minute is None and caller.max_concurrent is None


def test_only_an_endpoint_without_keys_is_open():
    assert ApiKeys.open().is_open and ApiKeys.of(None, environment_keys(None)).is_open
    assert not THREE.is_open


LOOPBACK = ["127.0.0.1", "127.8.9.10", "::1", "localhost", "LOCALHOST"]
ELSEWHERE = ["0.0.0.0", "::", "", "10.0.0.1", "128.0.0.1", "fe80::1", "localhost.org", "myhost"]


@pytest.mark.parametrize("host", LOOPBACK + ELSEWHERE)
def test_an_open_endpoint_may_listen_on_loopback_alone(host):
    may = nullcontext() if host in LOOPBACK else pytest.raises(ValueError, match="no API keys")
    with may:
        check_exposed(host, ApiKeys.open())
    check_exposed(host, THREE)
