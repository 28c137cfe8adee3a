"""Options, environment variables and the file of `hoststack serve`, and what is wrong in them."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from hoststack.serve.options import add_options, read_settings, variable_of
from hoststack.serve.settings import ServeError, ServeSettings, option_of


def read(*words: str, **environment: str) -> ServeSettings:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return read_settings(parser.parse_args(words), environment)


def test_every_setting_has_an_option_with_help_and_a_variable() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    text = parser.format_help()
    for field in dataclasses.fields(ServeSettings):
        assert field.name == "app" or option_of(field.name) in text
        assert field.metadata["help"]
    with pytest.raises(ServeError, match="no setting"):
        read("m:a", HOSTSTACK_SERVE_CERTFLIE="x")


def test_options_override_variables_and_variables_the_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        'app = "a:b"\nworkers = 2\nbind = ["127.0.0.1:1", "[::1]:2"]\nroot-path = "/file"\n'
        'idle-timeout = 5\ntcp = true\nlimit-body-bytes = 7\naccess-log = "-"\n'
    )
    settings = read("--config", str(file))
    assert (settings.app, settings.workers, settings.tcp) == ("a:b", 2, True)
    assert settings.bind == ("127.0.0.1:1", "[::1]:2")
    assert settings.http3().idle_seconds == 5
    assert settings.http3().max_body_bytes == 7
    assert settings.asgi().root_path == "/file"
    environment = {
        "HOSTSTACK_SERVE_CONFIG": str(file),
        "HOSTSTACK_SERVE_WORKERS": "3",
        "HOSTSTACK_SERVE_BIND": "127.0.0.1:3, 127.0.0.1:4",
        "HOSTSTACK_SERVE_TCP": "no",
        "HOSTSTACK_SERVE_IDLE_TIMEOUT": "6.5",
    }
    settings = read(**environment)
    assert (settings.workers, settings.tcp, settings.idle_timeout) == (3, False, 6.5)
    assert settings.bind == ("127.0.0.1:3", "127.0.0.1:4")
    settings = read("c:d", "-b", "h:5", "--workers", "4", "--tcp", **environment)
    assert (settings.app, settings.bind, settings.workers) == ("c:d", ("h:5",), 4)
    assert (settings.tcp, settings.root_path) == (True, "/file")
    assert read("c:d", **{variable_of("app_dir"): "src"}).app_dir == "src"


def test_applications_are_as_many_as_engines() -> None:
    assert read("a:b").applications == 1
    assert read("a:b", "--workers", "3").applications == 3
    assert read("a:b", "--workers", "1", "--apps", "4").applications == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "name what to serve"),
        (("a:b", "--root", "."), "name what to serve"),
        (("a:b", "--certfile", "x"), "1 --certfile and 0 --keyfile"),
        (("a:b", "--apps", "2"), "add --workers 1"),
        (("a:b", "--workers", "-1"), "--workers is 0 to 128, not -1"),
        (("a:b", "--idle-timeout", "nan"), "--idle-timeout is at least 0"),
        (("a:b", "--root-path", "x"), "--root-path is a path"),
        (("a:b", "--limit-header-bytes", str(1 << 40)), "--limit-header-bytes must be between"),
        (("a:b", "--webtransport", str(1 << 40)), "--webtransport must be between"),
        (("a:b", "--answer-timeout", "0"), "--answer-timeout must be more than 0"),
        (("a:b", "--runtime", "trio", "--loop", "uvloop"), "leave it out"),
        (("a:b", "--cli-socket", "x"), "add --workers 1"),
        (("a:b", "--config", "/nowhere/x"), "can't be read"),
    ],
)
def test_wrong_options(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(ServeError) as caught:
        read(*words)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ({"WORKERS": "two"}, "HOSTSTACK_SERVE_WORKERS is a whole number, not 'two'"),
        ({"TCP": "maybe"}, "HOSTSTACK_SERVE_TCP is true or false"),
        ({"RUNTIME": "twisted"}, "HOSTSTACK_SERVE_RUNTIME is one of asyncio, trio"),
        ({"BIND": ","}, "bind is empty"),
    ],
)
def test_wrong_variables(variable: dict[str, str], said: str) -> None:
    with pytest.raises(ServeError, match=said):
        read("a:b", **{f"HOSTSTACK_SERVE_{name}": text for name, text in variable.items()})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("workers = true", "workers is a whole number, not True"),
        ("wrokers = 1", "there is no setting 'wrokers'"),
        ("workers =", "not TOML"),
        ('engine = "x"', "engine is one of auto, native, aioquic"),
        ("bind = [1]", "bind is a text"),
        ("app_dir = 'x'", "there is no setting 'app_dir'"),
    ],
)
def test_wrong_files(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(ServeError, match=said):
        read("a:b", "--config", str(file))


def table() -> str:
    """The settings for docs/serve.md."""
    lines = ["| setting | | default |", "|---|---|---|"]
    for field in dataclasses.fields(ServeSettings):
        option = option_of(field.name) if field.name != "app" else ""
        value = f" {field.metadata['metavar']}" if field.metadata["metavar"] else ""
        default = field.default
        if default in (None, "", ()):
            shown = ""
        elif isinstance(default, bool):
            shown = f"`{default}`".lower()
        else:
            shown = f"`{', '.join(default) if isinstance(default, tuple) else default}`"
        about = field.metadata["help"].replace("|", "\\|")
        lines.append(f"| `{(option + value).strip()}` | {about} | {shown} |")
    return "\n".join(lines)


def test_the_docs_have_every_setting() -> None:
    page = Path(__file__).parents[2] / "docs" / "serve.md"
    assert table() in page.read_text(), f"put this into docs/serve.md:\n{table()}"
