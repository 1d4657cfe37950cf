"""Settings: defaults, what is accepted, and errors that name the variable and the way out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tokenlib.config import JwtIssuer, Settings, SignIn, is_loopback, sqlalchemy_url
from tokenlib.errors import ConfigurationError

SECRET = "s" * 32
PEPPER = "p" * 32
OIDC = {
    "TOKENLIB_OIDC_ISSUER": "https://id.example",
    "TOKENLIB_OIDC_CLIENT_ID": "console",
    "TOKENLIB_OIDC_CLIENT_SECRET": "client secret",
    "TOKENLIB_OIDC_REDIRECT_URI": "https://tokens.example/oauth2callback",
    "TOKENLIB_OIDC_COOKIE_SECRET": SECRET,
}


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
        " KEY_PEPPER SWITCH POOL_SIZE PREPARE SHARED_COMMIT"
        " LLM_BASE_URL LLM_API_KEY LLM_MODEL HOST PORT"
        " API_PLACES OPEN_DEMO OIDC_ISSUER OIDC_CLIENT_ID OIDC_CLIENT_SECRET OIDC_REDIRECT_URI"
        " JWT_SECRET_2 JWT_ISSUER_2"
        " OIDC_COOKIE_SECRET OIDC_TRUST_EMAIL OIDC_USER_CLAIM OIDC_SESSION_MINUTES"
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
            "TOKENLIB_SHARED_COMMIT": "off",
            "TOKENLIB_LLM_BASE_URL": "http://localhost:11434/v1",
            "TOKENLIB_LLM_API_KEY": "key",
            "TOKENLIB_LLM_MODEL": "small",
            "TOKENLIB_HOST": "0.0.0.0",
            "TOKENLIB_PORT": "9000",
            "TOKENLIB_API_PLACES": "64",
            "TOKENLIB_OPEN_DEMO": "true",
            "TOKENLIB_OIDC_TRUST_EMAIL": "true",
            "TOKENLIB_OIDC_USER_CLAIM": "sub",
            "TOKENLIB_OIDC_SESSION_MINUTES": "30",
            **OIDC,
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
        shared_commit=False,
        llm_base_url="http://localhost:11434/v1",
        llm_api_key="key",
        llm_model="small",
        host="0.0.0.0",
        port=9000,
        api_places=64,
        sign_in=SignIn(
            issuer="https://id.example",
            client_id="console",
            client_secret="client secret",
            redirect_uri="https://tokens.example/oauth2callback",
            cookie_secret=SECRET,
            trust_email=True,
            user_claim="sub",
            session_minutes=30,
        ),
        open_demo=True,
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


def test_issuers_beside_the_first_have_a_number() -> None:
    def numbered(number: int, **values: str) -> dict[str, str]:
        return {f"TOKENLIB_JWT_{name}_{number}": value for name, value in values.items()}

    second = {"ISSUER": "https://b.example", "AUDIENCE": "b", "SECRET": SECRET}
    third = {"ISSUER": "https://c.example", "AUDIENCE": "c", "JWKS_URL": "https://c.example/keys"}
    settings = Settings.from_env(numbered(10, **third) | numbered(2, **second))
    assert settings.jwt_issuers == (
        JwtIssuer("https://b.example", "b", secret=SECRET),
        JwtIssuer("https://c.example", "c", jwks_url="https://c.example/keys"),
    )
    assert SECRET not in repr(settings)
    for wrong in (
        {name: value for name, value in second.items() if name != "ISSUER"},
        {name: value for name, value in second.items() if name != "AUDIENCE"},
        {name: value for name, value in second.items() if name != "SECRET"},
        second | third,
        second | {"SECRET": "s" * 31},
        third | {"JWKS_URL": "http://c.example/keys"},
    ):
        with pytest.raises(ConfigurationError, match="_2"):
            Settings.from_env(numbered(2, **wrong))


@pytest.mark.parametrize(
    "name",
    [
        "ISSUER_02",
        "ISSUER_X",
        "ISSUER_0",
        "ISSUER_",
        "ISSUER_2_",
        "ISSUER2",
        "SECRETS",
        "AUDIENCE-2",
    ],
)
def test_a_setting_of_jwts_that_nobody_reads_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"TOKENLIB_JWT_ISSUER_2\.") as refused:
        Settings.from_env({f"TOKENLIB_JWT_{name}": "https://b.example"})
    assert str(refused.value).startswith(f"TOKENLIB_JWT_{name} is not known")
    assert Settings.from_env({f"TOKENLIB_JWT_{name}": " "}).jwt_issuers == ()


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


@pytest.mark.parametrize("name", OIDC)
def test_a_sign_in_is_set_up_whole_or_not_at_all(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"together; {name} is not set"):
        Settings.from_env({**OIDC, name: ""})


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("ISSUER", "http://id.example", "https://"),
        ("ISSUER", "id.example", "https://"),
        ("ISSUER", "http://127.0.0.1.example", "https://"),
        ("ISSUER", "https://[", "https://"),
        ("REDIRECT_URI", "http://tokens.example/oauth2callback", "https://"),
        ("REDIRECT_URI", "https://tokens.example/", "/oauth2callback"),
        ("COOKIE_SECRET", "s" * 31, "32 bytes"),
        ("TRUST_EMAIL", "maybe", "true or false"),
        ("SESSION_MINUTES", "0", "from 1 to 43200"),
    ],
)
def test_what_a_sign_in_cannot_be_is_named(name: str, value: str, allowed: str) -> None:
    with pytest.raises(ConfigurationError, match=f"TOKENLIB_OIDC_{name} must .*{allowed}"):
        Settings.from_env({**OIDC, f"TOKENLIB_OIDC_{name}": value})


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:9000", "[::1]:9000"])
def test_plain_http_stays_on_this_machine(host: str) -> None:
    address = f"http://{host}/oauth2callback"
    settings = Settings.from_env({**OIDC, "TOKENLIB_OIDC_REDIRECT_URI": address})
    assert settings.sign_in
    assert settings.sign_in.redirect_uri == address


def test_a_sign_in_leaves_no_demo_people_and_shows_no_secret() -> None:
    assert Settings.from_env({}).demo_people
    settings = Settings.from_env(OIDC)
    assert settings.embedded
    assert not settings.demo_people
    assert SECRET not in repr(settings)
    assert "client secret" not in repr(settings)
    assert not Settings.from_env({"TOKENLIB_DATABASE_URL": "postgresql://h/d"}).demo_people


@pytest.mark.parametrize(
    ("address", "own"),
    [
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.7", False),
        ("fe80::1%eth0", False),
        ("::ffff:10.0.0.7", False),
    ],
)
def test_an_address_is_this_machines_or_not(address: str, own: bool) -> None:
    assert is_loopback(address) is own
