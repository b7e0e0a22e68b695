"""Each setting of the engine is an option of the job, of the endpoint and of config.yaml."""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml

from shardrank import cli
from shardrank.actors.config import QueryOptions, RerankerConfig, settings_of, without_none
from shardrank.actors.fetch.web import WebMedia
from shardrank.jobs.errors import UsageError
from shardrank.options import built, options_of
from shardrank.serve import cli as serve_cli
from shardrank.serve.deployment import AppArguments
from shardrank.serve.settings import Limits, ServeSettings
from tests.support.engine import GOLDEN, TINY

NOT_OF_STRANGERS = {"media_root", "local_media"}
"""No option of the endpoint: a request names no file of ours."""
ENDPOINTS_NAMES = {"max_decoded_pixels": "max_image_pixels"}


def another(kind: Any, default: Any) -> Any:
    """A value of the type that is not the default."""
    kind, _ = without_none(kind)
    if get_origin(kind) is Literal:
        return next(each for each in get_args(kind) if each != default)
    if kind is bool:
        return not default
    return {int: 7, float: 2.5, str: "cpu", WebMedia: WebMedia()}.get(kind, "/pages")


FIELDS = [
    (
        owner,
        field.name,
        str(GOLDEN / "lora" / "vl-lora")
        if field.name == "adapter"
        else another(settings_of(owner)[field.name][0], field.default),
    )
    for owner in (RerankerConfig, QueryOptions)
    for field in fields(owner)
    if field.name not in ("model", "options", "embedding")
]


def argument_of(name: str, value: Any) -> str:
    name = name.replace("_", "-")
    if isinstance(value, bool | WebMedia):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def option_of(owner: type, name: str) -> str:
    return settings_of(owner)[name][1].name or name


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> list[RerankerConfig]:
    """Those that the commands come to; nothing is started."""
    found: list[RerankerConfig] = []

    def job(options: object, config: RerankerConfig) -> None:
        found.append(config)
        raise UsageError("that is enough")

    def server(settings: ServeSettings, *others: object) -> None:
        found.append(settings.engine)

    monkeypatch.setattr(cli, "run_rerank", job)
    monkeypatch.setattr(serve_cli, "run_server", server)
    monkeypatch.setattr(serve_cli, "check_port", lambda host, port: None)
    return found


def test_no_field_of_the_engine_is_left_undescribed() -> None:
    for owner in (RerankerConfig, QueryOptions):
        named = {field.name for field in fields(owner)} - {"options", "embedding"}
        assert settings_of(owner).keys() == named


@pytest.mark.parametrize(("owner", "name", "value"), FIELDS, ids=[each[1] for each in FIELDS])
def test_each_setting_is_an_option_of_all_three(
    owner: type, name: str, value: Any, configs: list[RerankerConfig], tmp_path: Path
) -> None:
    option = option_of(owner, name)
    job = ["rerank", "in.parquet", f"--output={tmp_path}", f"--model={TINY}"]
    cli.main([*job, argument_of(option, value)])
    if name not in NOT_OF_STRANGERS | {"web_media"}:
        option = ENDPOINTS_NAMES.get(option, option)
        assert cli.main(["serve", f"--model={TINY}", argument_of(option, value)]) == 0
        is_limit = option in options_of(Limits)
        given = {"limits": {option: value}} if is_limit else {option: value}
        configs.append(AppArguments.model_validate({"model": str(TINY)} | given).settings().engine)
    assert len(configs) == (1 if name in NOT_OF_STRANGERS | {"web_media"} else 3)
    for config in configs:
        owned = config.options if owner is QueryOptions else config
        assert getattr(owned, name) == value


def test_the_endpoint_fetches_by_its_own_rule_and_reads_no_file() -> None:
    for wanted in (True, False):
        networks = ["10.0.0.0/8"] if wanted else []
        arguments = {"model": str(TINY), "web_media": wanted, "allowed_networks": networks}
        settings = AppArguments.model_validate(arguments).settings()
        assert settings.web == (WebMedia(allowed_networks=("10.0.0.0/8",)) if wanted else None)
        assert (settings.engine.web_media, settings.engine.local_media) == (None, False)
    arguments = {"model": str(TINY), "allowed_networks": ["10.0.0.0/8"]}  # fetching is the default
    web = AppArguments.model_validate(arguments).settings().web
    assert web is not None and web.allowed_networks == ("10.0.0.0/8",)


@pytest.mark.parametrize(
    "given", [{"media_root": ["/"]}, {"local_media": True}, {"limits": {"x": 1}}, {"keys": []}]
)
def test_a_name_that_config_yaml_does_not_have_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        AppArguments.model_validate({"model": str(TINY)} | given)


def test_a_limit_of_the_endpoint_is_refused_by_its_own_rule(
    configs: list[RerankerConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", f"--model={TINY}", "--max-video-s=0"]) == 2
    assert "max_video_s must be at least 1, got 0" in capsys.readouterr().err
    arguments = AppArguments.model_validate({"model": str(TINY), "limits": {"max_text_chars": 0}})
    with pytest.raises(ValueError, match="max_text_chars must be at least 1, got 0"):
        arguments.settings()
    assert configs == []


def test_a_choice_in_config_yaml_is_refused_in_the_engines_own_words() -> None:
    with pytest.raises(ValueError, match="dtype must be one of auto, .*, got 'int8'"):
        AppArguments.model_validate({"model": str(TINY), "dtype": "int8"}).settings()


def test_what_stands_in_config_yaml_as_a_comment_could_stand_there() -> None:
    lines = (Path(__file__).parents[1] / "serve" / "config.yaml").read_text("utf-8").splitlines()
    shown = [line.strip(" #") for line in lines if line.startswith("      # ") and ": " in line]
    options = [each for each in shown if each.split(":")[0].isidentifier()]
    assert len(options) >= 9
    for each in options:
        arguments = {"model": str(TINY)} | yaml.safe_load(each)
        assert AppArguments.model_validate(arguments).settings()


def test_networks_without_fetching_are_refused():
    given = {"model": "m", "allowed_networks": ["10.0.0.0/8"]}
    with pytest.raises(ValueError, match="count only with web_media"):
        built(RerankerConfig, given | {"web_media": False})
    config = built(RerankerConfig, given | {"web_media": True})
    assert config.web_media.allowed_networks == ("10.0.0.0/8",)
