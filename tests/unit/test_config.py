"""Settings: defaults, what is accepted, and errors that name the variable and the way out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tokenlib.config import Settings, sqlalchemy_url
from tokenlib.errors import ConfigurationError

SECRET = "s" * 32
PEPPER = "p" * 32


def test_an_empty_environment_means_the_bundled_server_on_this_machine_alone() -> None:
    settings = Settings.from_env({})
    assert settings.embedded
    assert settings.sqlalchemy_url is None
    assert settings.sqlalchemy_migration_url is None
    assert (settings.host, settings.port) == ("127.0.0.1", 8501)
    assert (settings.pool_size, settings.prepare, settings.switch) == (10, None, None)


def test_empty_values_are_unset() -> None:
    names = (
        "DATABASE_URL MIGRATION_URL DATA_DIR JWT_SECRET JWT_ISSUER JWT_AUDIENCE JWT_JWKS_URL"
        " KEY_PEPPER SWITCH POOL_SIZE PREPARE LLM_BASE_URL LLM_API_KEY LLM_MODEL HOST PORT"
        " API_PLACES"
    )
    empty = {f"TOKENLIB_{name}": "" for name in names.split()}
    assert Settings.from_env(empty) == Settings.from_env({})


def test_every_variable_is_read() -> None:
    settings = Settings.from_env(
        {
            "TOKENLIB_DATABASE_URL": "postgres://service:pw@db.example/app",
            "TOKENLIB_MIGRATION_URL": "postgresql://owner:pw@db.example/app",
            "TOKENLIB_DATA_DIR": "/srv/tokenlib",
            "TOKENLIB_JWT_SECRET": SECRET,
            "TOKENLIB_JWT_ISSUER": "https://issuer.example",
            "TOKENLIB_JWT_AUDIENCE": "authenticated",
            "TOKENLIB_JWT_JWKS_URL": "https://issuer.example/jwks.json",
            "TOKENLIB_KEY_PEPPER": PEPPER,
            "TOKENLIB_SWITCH": "log_only",
            "TOKENLIB_POOL_SIZE": "25",
            "TOKENLIB_PREPARE": "False",
            "TOKENLIB_DEADLINE": "2.5",
            "TOKENLIB_LLM_BASE_URL": "http://localhost:11434/v1",
            "TOKENLIB_LLM_API_KEY": "key",
            "TOKENLIB_LLM_MODEL": "small",
            "TOKENLIB_HOST": "0.0.0.0",
            "TOKENLIB_PORT": "9000",
            "TOKENLIB_API_PLACES": "64",
        }
    )
    assert settings == Settings(
        data_dir=Path("/srv/tokenlib"),
        database_url="postgres://service:pw@db.example/app",
        migration_url="postgresql://owner:pw@db.example/app",
        jwt_secret=SECRET,
        jwt_issuer="https://issuer.example",
        jwt_audience="authenticated",
        jwt_jwks_url="https://issuer.example/jwks.json",
        key_pepper=PEPPER,
        switch="log_only",
        pool_size=25,
        prepare=False,
        deadline=2.5,
        llm_base_url="http://localhost:11434/v1",
        llm_api_key="key",
        llm_model="small",
        host="0.0.0.0",
        port=9000,
        api_places=64,
    )
    assert settings.sqlalchemy_url == "postgresql+psycopg://service:pw@db.example/app"
    assert settings.sqlalchemy_migration_url == "postgresql+psycopg://owner:pw@db.example/app"
    assert not settings.embedded


def test_migrations_use_the_database_url_unless_told_otherwise() -> None:
    settings = Settings.from_env({"TOKENLIB_DATABASE_URL": "postgresql://db.example/app"})
    assert settings.migration_url == "postgresql://db.example/app"


@pytest.mark.parametrize(
    "url", ["postgres://h/d?a=b", "postgresql://h/d?a=b", "postgresql+psycopg://h/d?a=b"]
)
def test_each_spelling_selects_the_psycopg_driver(url: str) -> None:
    assert sqlalchemy_url(url) == "postgresql+psycopg://h/d?a=b"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("TOKENLIB_DATABASE_URL", "mysql://h/d", "postgresql://"),
        ("TOKENLIB_DATABASE_URL", "host=localhost dbname=d", "postgresql://"),
        ("TOKENLIB_DATABASE_URL", "postgresql+asyncpg://h/d", "postgresql://"),
        ("TOKENLIB_MIGRATION_URL", "sqlite:///x.db", "postgresql://"),
        ("TOKENLIB_DATA_DIR", "~nobody-has-this-name/data", "does not exist"),
        ("TOKENLIB_JWT_SECRET", "s" * 31, "32 bytes"),
        ("TOKENLIB_SWITCH", "disabled", "enforce, log_only or off"),
        ("TOKENLIB_POOL_SIZE", "0", "from 1 to 1000"),
        ("TOKENLIB_POOL_SIZE", "ten", "from 1 to 1000"),
        ("TOKENLIB_POOL_SIZE", "²", "from 1 to 1000"),
        ("TOKENLIB_PREPARE", "maybe", "true or false"),
        ("TOKENLIB_DEADLINE", "0", "from 0.1 to 300"),
        ("TOKENLIB_DEADLINE", "301", "from 0.1 to 300"),
        ("TOKENLIB_DEADLINE", "nan", "from 0.1 to 300"),
        ("TOKENLIB_DEADLINE", "5s", "from 0.1 to 300"),
        ("TOKENLIB_LLM_BASE_URL", "localhost:11434", "http://"),
        ("TOKENLIB_PORT", "65536", "from 1 to 65535"),
        ("TOKENLIB_PORT", "-1", "from 1 to 65535"),
    ],
)
def test_a_bad_value_is_refused_by_name_and_with_what_is_allowed(
    name: str, value: str, allowed: str
) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Settings.from_env({name: value})
    assert str(refused.value).startswith(name)
    assert allowed in str(refused.value)


def test_no_secret_shows_in_the_repr_or_in_an_error() -> None:
    environ = {
        "TOKENLIB_DATABASE_URL": "postgresql://service:hidden-1@db.example/app",
        "TOKENLIB_MIGRATION_URL": "postgresql://owner:hidden-2@db.example/app",
        "TOKENLIB_JWT_SECRET": "hidden-3-hidden-3-hidden-3-hidden-3",
        "TOKENLIB_LLM_API_KEY": "hidden-4",
    }
    assert "hidden" not in repr(Settings.from_env(environ))
    with pytest.raises(ConfigurationError) as refused:
        Settings.from_env({"TOKENLIB_DATABASE_URL": "mysql://service:hidden@db.example/app"})
    assert "hidden" not in str(refused.value)


def test_the_data_of_root_stay_out_of_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    settings = Settings.from_env({"XDG_DATA_HOME": "/root/.local/share"})
    assert settings.data_dir == Path("/var/lib/tokenlib")


def test_the_data_of_a_user_follow_the_xdg_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/somebody")
    default = Path("/home/somebody/.local/share/tokenlib")
    assert Settings.from_env({}).data_dir == default
    assert Settings.from_env({"XDG_DATA_HOME": "relative"}).data_dir == default
    assert Settings.from_env({"XDG_DATA_HOME": "/data"}).data_dir == Path("/data/tokenlib")


def test_a_data_dir_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Settings.from_env({"TOKENLIB_DATA_DIR": "data"}).data_dir == tmp_path / "data"
    expanded = Settings.from_env({"TOKENLIB_DATA_DIR": "~/data"}).data_dir
    assert expanded == Path("/home/somebody/data")
