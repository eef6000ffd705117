"""Settings: code over environment over file over default, and nothing that is wrong is ignored."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest

from hivewire.errors import SettingsError
from hivewire.settings import KafkaSettings, RedisSettings, Secret, Settings, load
from hivewire.settings.schema import SECTIONS, Setting, every_setting
from hivewire.settings.values import kind_of

EVERY = every_setting()
IDS = [setting.name for setting in EVERY]
REFERENCE_ENV = {
    "PROTOCOL_TYPE", "REDIS_ADDR", "REDIS_PASSWORD", "REDIS_DB", "REDIS_POOL_SIZE", "REDIS_MESSAGE_TTL",
    "REDIS_CONSUMER_GROUP", "KAFKA_BROKERS", "KAFKA_GROUP_ID", "KAFKA_CLIENT_ID", "KAFKA_TOPIC_PREFIX",
    "KAFKA_NUM_PARTITIONS", "KAFKA_REPLICATION_FACTOR", "KAFKA_MESSAGE_TTL", "LEDGER_TYPE", "LEDGER_ENABLE_CACHE",
    "LEDGER_CACHE_TTL", "LEDGER_AUTO_PURGE", "LEDGER_PURGE_INTERVAL", "LEDGER_RETAIN_DURATION", "POSTGRES_HOST",
    "POSTGRES_PORT", "POSTGRES_DB", "POSTGRES_USER", "POSTGRES_PASSWORD", "POSTGRES_SSL_MODE", "POSTGRES_MAX_CONNS",
    "POSTGRES_IDLE_CONNS", "POSTGRES_STATEMENT_TIMEOUT",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting from outside the test."""
    for variable in os.environ:
        if variable.startswith(("HIVEWIRE_", "REDIS_", "KAFKA_", "PROTOCOL_", "LEDGER_", "POSTGRES_")):
            monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


def write_file(text: str) -> None:
    Path("hivewire.toml").write_text(text, "utf-8")


def in_file(setting: Setting, value: Any) -> str:
    table = f"[{setting.section}]\n" if setting.section else ""
    return f"{table}{setting.name.rpartition('.')[2]} = {json.dumps(value)}\n"


def in_code(setting: Setting, value: Any) -> dict[str, Any]:
    name = setting.name.rpartition(".")[2]
    return {setting.section: {name: value}} if setting.section else {name: value}


def value_of(settings: Settings, setting: Setting) -> tuple[Any, str]:
    holder = getattr(settings, setting.section) if setting.section else settings
    (source,) = (source for name, _, source in settings.sources() if name == setting.name)
    return getattr(holder, setting.field), source


def three_values(setting: Setting) -> list[Any]:
    """Values to be given in the file, the environment and the code; neighbours differ where they can."""
    kind, _ = kind_of(setting)
    if setting.name == "url":
        return ["memory://file", "memory://environment", "memory://code"]
    if setting.name == "redis.addr":
        return ["file:1", "environment:2", "code:3"]
    if setting.name == "kafka.brokers":
        return [("file:1",), ("environment:2", "e:3"), ("code:4",)]
    if get_origin(kind) is Literal:
        others = [choice for choice in get_args(kind) if choice != setting.default] or [setting.default]
        return [others[0], setting.default, others[-1]]
    if kind is bool:
        return [not setting.default, setting.default, not setting.default]
    if kind is int:
        return [7, 8, 9]
    if kind is float:
        return [7.5, 8.0, 9.25]
    return [kind("file"), kind("environment"), kind("code")]


def plain(value: Any) -> Any:
    return value.reveal() if isinstance(value, Secret) else value


def text(value: Any) -> str:
    value = plain(value)
    return (
        ",".join(value) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)
    )


@pytest.mark.parametrize("setting", EVERY, ids=IDS)
def test_code_over_environment_over_file_over_default(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    from_file, from_env, from_code = three_values(setting)
    expected = {"url": "memory://"}.get(setting.name, setting.default)
    assert value_of(load(), setting) == (expected, "default")
    write_file(in_file(setting, plain(from_file)))
    assert value_of(load(), setting) == (from_file, "hivewire.toml")
    monkeypatch.setenv(setting.env, text(from_env))
    assert value_of(load(), setting) == (from_env, f"the environment variable {setting.env}")
    assert value_of(load(**in_code(setting, plain(from_code))), setting) == (from_code, "the code")


@pytest.mark.parametrize("setting", EVERY, ids=IDS)
def test_a_bad_value_is_refused_by_name_source_and_accepted_values(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = setting.name.rpartition(".")[2]
    with pytest.raises(SettingsError, match=rf"{name}.* the code.*accepted"):
        load(**in_code(setting, {"a": "table"}))
    write_file(in_file(setting, [[]]))
    with pytest.raises(SettingsError, match=rf"{name}.* hivewire\.toml.*accepted"):
        load()
    write_file("")
    kind, _ = kind_of(setting)
    if kind is str or kind is Secret:
        return  # every text is one
    monkeypatch.setenv(setting.env, ",")
    with pytest.raises(SettingsError, match=rf"{name}.*{setting.env}.*accepted"):
        load()


@pytest.mark.parametrize("setting", [s for s in EVERY if s.about.least is not None], ids=str)
def test_limits_hold(setting: Setting) -> None:
    least, most = setting.about.least, setting.about.most
    assert least is not None
    bad: list[Any] = [least - 1, float("nan"), float("inf"), True, *([most + 1] if most else [])]
    for value in bad:
        with pytest.raises(SettingsError):
            load(**in_code(setting, value))
    kind, _ = kind_of(setting)
    code: dict[str, Any] = in_code(setting, kind(least))
    if setting.name == "retry_most_s":
        code["retry_first_s"] = 0
    assert value_of(load(**code), setting) == (least, "the code")


def test_the_names_of_the_reference_are_all_there() -> None:
    assert {setting.about.env for setting in EVERY if setting.about.env} == REFERENCE_ENV
    assert all(setting.env.startswith("HIVEWIRE_") for setting in EVERY if setting.env not in REFERENCE_ENV)
    assert len({setting.env for setting in EVERY}) == len(EVERY)


def test_the_defaults_of_the_reference() -> None:
    redis, kafka = RedisSettings(), KafkaSettings()
    assert (redis.addr, redis.password.reveal(), redis.db) == ("localhost:6379", "", 0)
    assert (redis.min_idle_conns, redis.max_retries, redis.dial_timeout_s) == (5, 3, 5)
    assert (redis.read_timeout_s, redis.write_timeout_s) == (3, 3)
    assert redis.consumer_group == "multiagent"
    assert (kafka.brokers, kafka.group_id, kafka.topic_prefix) == (
        ("localhost:9092",),
        "multiagent-group",
        "multiagent",
    )
    assert (kafka.num_partitions, kafka.replication_factor, kafka.compression) == (3, 1, "snappy")
    assert (kafka.min_bytes, kafka.max_bytes, kafka.max_wait_s) == (1, 10_000_000, 0.1)
    assert (kafka.read_batch_timeout_s, kafka.commit_interval_s, kafka.write_timeout_s) == (10, 1, 10)
    assert (kafka.max_attempts, kafka.async_) == (3, "false")
    assert Settings().max_message_size_bytes == 1024 * 1024
    assert Settings().protocol == "inmemory"


def test_each_default_that_differs_from_the_reference_says_why() -> None:
    differs = {setting.name for setting in EVERY if setting.about.reference}
    assert differs == {
        "inmemory.max_queue_size", "redis.message_ttl_s", "redis.stream_max_len", "redis.pool_size",
        "redis.block_timeout_s",
        "redis.pipeline_size", "redis.flush_interval_s", "kafka.message_ttl_s",
        "kafka.require_acks", "kafka.batch_size", "kafka.batch_timeout_s", "kafka.max_wait_s",
    }  # fmt: skip
    assert all(bool(setting.about.reference) == bool(setting.about.why) for setting in EVERY)


# ------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("HIVEWIRE_LEASE", "HIVEWIRE_LEASE_S"), ("HIVEWIRE_LEDGER_TYPE", ""), ("HIVEWIRE_AUTOSCALE_ENABLED", ""),
        ("HIVEWIRE_REDIS_ADDR", "REDIS_ADDR"), ("HIVEWIRE_PROTOCOL_TYPE", "PROTOCOL_TYPE"), ("HIVEWIRE_", ""),
    ],
)  # fmt: skip
def test_an_unknown_variable_is_refused(variable: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(SettingsError, match=rf"{variable} \(in the environment\).*{hint}"):
        load()


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("REDIS_URL", "REDIS_PORT", "KAFKA_HEAP_OPTS", "HIVEWIRE_SOAK", "HIVEWIRE_LOG", "hivewire_x"):
        monkeypatch.setenv(variable, "tcp://1.2.3.4")
    assert load().origins == {}


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_DB", "")
    monkeypatch.setenv("HIVEWIRE_LEASE_S", "")
    assert load().origins == {}


@pytest.mark.parametrize("file", ["lease = 5", "[redis]\npol_size = 1", "[ledger]\nkind = 'x'", "redis_db = 1"])
def test_unknown_names_in_the_file_are_refused(file: str) -> None:
    if file.startswith("lease"):
        write_file(file)
        assert load().lease_s == 5  # the reference leaves units away
        file = "leese = 5"
    write_file(file)
    with pytest.raises(SettingsError, match=r"there is no setting .*hivewire\.toml"):
        load()


@pytest.mark.parametrize(
    "code", [{"leese": 1}, {"redis": {"pol": 1}}, {"redis_pol": 1}, {"LEASE_S": 1}, {"origins": {}}]
)
def test_unknown_names_in_code_are_refused(code: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="there is no setting"):
        load(**code)


def test_names_of_the_reference_need_no_unit() -> None:
    settings = load(
        redis={"message_ttl": "24h", "dial_timeout": "500ms"}, kafka={"batch_timeout": 2}, max_message_size=9
    )
    assert (settings.redis.message_ttl_s, settings.redis.dial_timeout_s) == (86400, 0.5)
    assert (settings.kafka.batch_timeout_s, settings.max_message_size_bytes) == (2, 9)


@pytest.mark.parametrize(
    "code",
    [{"lease": 1, "lease_s": 2}, {"redis_db": 1, "redis": {"db": 2}}, {"kafka": {"max_wait": 1, "max_wait_s": 1}}],
)  # fmt: skip
def test_a_setting_given_twice_in_one_source_is_refused(code: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="twice"):
        load(**code)


def test_sections_as_structs_tables_and_flat_names() -> None:
    for settings in (load(redis=RedisSettings(db=3)), load(redis={"db": 3}), load(redis_db=3), load(redis={"db": "3"})):
        assert settings.redis.db == 3
        assert settings.origins == {"redis.db": "the code"}
    with pytest.raises(SettingsError, match="table"):
        load(redis=5)


# ------------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize("content", [b"lease_s = ", b"\xff", b"a = [[[[" * 50_000, b"lease_s = 1\nlease_s = 2"])
def test_a_file_that_is_not_toml_is_refused_by_name(content: bytes) -> None:
    Path("hivewire.toml").write_bytes(content)
    with pytest.raises(SettingsError, match=r"hivewire\.toml"):
        load()


def test_another_file_can_be_named_and_must_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    monkeypatch.setenv("HIVEWIRE_CONFIG", str(other))
    with pytest.raises(SettingsError, match="HIVEWIRE_CONFIG"):
        load()
    other.write_text("lease_s = 3")
    write_file("lease_s = 4")
    assert load().lease_s == 3
    assert load().origins["lease_s"] == str(other)


def test_a_folder_in_place_of_the_file_is_refused() -> None:
    Path("hivewire.toml").mkdir()
    with pytest.raises(SettingsError, match="can not be read"):
        load()


# ------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("memory://", {"protocol": "inmemory", "url": "memory://"}),
        ("memory://team-1", {"protocol": "inmemory", "url": "memory://team-1"}),
        ("sqlite://", {"protocol": "sqlite", "url": "sqlite://"}),
        ("sqlite:///a b/c.db", {"protocol": "sqlite", "url": "sqlite:///a b/c.db"}),
        ("sqlite:////abs/c.db?lease_s=5", {"protocol": "sqlite", "url": "sqlite:////abs/c.db", "lease_s": 5}),
        ("sqlite:///c.db?sqlite_synchronous=normal&lease=2s", {"sqlite_synchronous": "normal", "lease_s": 2}),
        ("SQLite:///c.db", {"protocol": "sqlite"}),
        ("redis://", {"protocol": "redis", "redis.addr": "localhost:6379"}),
        ("redis://h", {"redis.addr": "h:6379", "redis.db": 0, "redis.tls": False}),
        ("redis://h:1/5?pool_size=2", {"redis.addr": "h:1", "redis.db": 5, "redis.pool_size": 2}),
        ("redis://a,b:1,[::1]", {"redis.addr": "a:6379,b:1,[::1]:6379", "url": "redis://a:6379,b:1,[::1]:6379"}),
        ("redis://a,b", {"redis.cluster": True}),
        ("redis://a,b?sentinel_master=m", {"redis.cluster": False}),
        ("redis://h?cluster=true", {"redis.addr": "h:6379", "redis.cluster": True}),
        ("redis://s1:1,s2/2?sentinel_master=m", {"redis.sentinel_master": "m", "redis.db": 2}),
        (
            "rediss://h?tls_ca_file=/ca.pem&tls_check_host=no",
            {"redis.tls_ca_file": "/ca.pem", "redis.tls_check_host": False},
        ),
        ("rediss://[::1]:7", {"redis.addr": "[::1]:7", "redis.tls": True}),
        ("redis://bob:p%40ss@h", {"redis.username": "bob", "redis.password": Secret("p@ss"), "url": "redis://h:6379"}),
        ("redis://:pw@h/1?message_ttl=1h", {"redis.password": Secret("pw"), "message_ttl_s": 3600}),
        ("kafka://", {"protocol": "kafka", "kafka.brokers": ("localhost:9092",)}),
        ("kafka://a,b:1", {"kafka.brokers": ("a:9092", "b:1"), "url": "kafka://a:9092,b:1"}),
        ("kafka://a?num_partitions=6&max_attempts=4", {"kafka.num_partitions": 6, "kafka.max_attempts": 4}),
    ],
)
def test_what_a_url_says(url: str, expected: dict[str, Any]) -> None:
    settings = load(url)
    for name, value in expected.items():
        section, _, field = name.rpartition(".")
        assert getattr(getattr(settings, section) if section else settings, field) == value, name


@pytest.mark.parametrize(
    "url",
    ["", "memory", "memory:", "memory:/x", "inmemory://", "http://x", "memory://a/b", "memory://a b", "memory://../x",
     "sqlite://c.db", "sqlite:///", "sqlite:///:memory:", "sqlite:///dir/", "sqlite:///a\0b", "redis://h/x", "redis://h:0",
     "redis://h:99999", "redis://h:x", "redis://a b", "redis://h#1", "redis://h/1/2", "kafka://h/topic", "kafka://h:1:2",
     "kafka://u:p@h", "kafka://a b", "memory://?leese=1", "memory://?lease_s=0", "memory://?lease_s=1&lease_s=2",
     "memory://?lease_s", "memory://?url=x", "memory://?protocol=kafka", "memory://?lease_s=%ff", "redis://?db=1&redis.db=2",
     "redis://h/1?db=2", "redis://a,/", "redis://a,b/1", "redis://a/1?cluster=yes", "redis://a,b?cluster=no", "redis://a?cluster=yes&sentinel_master=m",
     "memory://?kafka.group_id=x"],
)  # fmt: skip
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(SettingsError):
        load(url)


def test_the_url_and_code_of_the_same_call_agree_or_code_wins() -> None:
    assert load("memory://?max_attempts=3", max_attempts=4).max_attempts == 4
    with pytest.raises(SettingsError, match="both"):
        load("memory://", protocol="sqlite")
    with pytest.raises(SettingsError, match="twice"):
        load("memory://", url="memory://x")


def test_a_weightier_source_chooses_another_store(monkeypatch: pytest.MonkeyPatch) -> None:
    write_file('url = "sqlite:///from_file.db?lease_s=3"')
    assert (load().protocol, load().url, load().lease_s) == ("sqlite", "sqlite:///from_file.db", 3)
    assert load(protocol="sqlite").url == "sqlite:///from_file.db"
    monkeypatch.setenv("PROTOCOL_TYPE", "inmemory")
    assert (load().protocol, load().url, load().lease_s) == ("inmemory", "memory://", 10)
    monkeypatch.setenv("HIVEWIRE_URL", "memory://env")
    assert (load().protocol, load().url) == ("inmemory", "memory://env")
    chosen = load("sqlite:///code.db")
    assert (chosen.protocol, chosen.url) == ("sqlite", "sqlite:///code.db")


@pytest.mark.parametrize(
    ("code", "lease_s", "warned"),
    [({}, 6, False), ({"lease_s": 2}, 6, True), ({"lease_s": 30}, 30, False)],
)
def test_the_lease_on_kafka(
    code: dict[str, Any], lease_s: float, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert load("kafka://h", **code).lease_s == lease_s
    assert bool(caplog.records) == warned


def test_names_of_the_reference_set_the_general_setting_of_the_store_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_MESSAGE_TTL", "24h")
    assert load("memory://").message_ttl_s is None
    settings = load("redis://h", redis={"stream_max_len": 10_000, "max_message_size": 5})
    assert (settings.message_ttl_s, settings.queue_cap, settings.max_message_size_bytes) == (86400, 10_000, 5)
    assert settings.origins["message_ttl_s"] == "the environment variable REDIS_MESSAGE_TTL"
    assert load("redis://h", message_ttl_s=1).message_ttl_s == 1
    assert load(inmemory={"max_queue_size": 1000}).queue_cap == 1000
    write_file("message_ttl_s = 5")
    assert load("redis://h").message_ttl_s == 86400  # the environment outweighs the file
    monkeypatch.setenv("HIVEWIRE_MESSAGE_TTL_S", "6")
    assert load("redis://h").message_ttl_s == 6  # the general name outweighs the special one


def test_what_a_url_says_names_the_source_of_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    write_file('url = "sqlite:///f.db?max_attempts=3"')
    assert load().origins["max_attempts"] == "the URL in hivewire.toml"
    monkeypatch.setenv("HIVEWIRE_URL", "sqlite:///e.db?max_attempts=4")
    settings = load()
    assert (settings.max_attempts, settings.url) == (4, "sqlite:///e.db")
    assert settings.origins["max_attempts"] == "the URL in the environment variable HIVEWIRE_URL"
    monkeypatch.setenv("HIVEWIRE_URL", "sqlite:///e.db?max_attempts=0")
    with pytest.raises(SettingsError, match="max_attempts in the URL in the environment variable HIVEWIRE_URL"):
        load()


@pytest.mark.parametrize("name", ["worker_name", "redis_addr", "kafka_group_id", "kafka_brokers", "url"])
def test_texts_are_one_line(name: str) -> None:
    for value in ("a\nb", "a\0", "", "\x7f"):
        code: dict[str, Any] = {name: value}
        with pytest.raises(SettingsError, match="accepted"):
            load(**code)


def test_settings_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(SettingsError, match="retry_first_s"):
        load(retry_first_s=5, retry_most_s=1)


# ------------------------------------------------------------------------------------------- objects and secrets


def test_a_settings_object_is_taken_as_it_is_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIVEWIRE_LEASE_S", "77")
    made = load("sqlite:///x.db", lease_s=3, redis={"password": "s3cret"})
    assert load(made) == made
    assert load(made, lease_s=4).lease_s == 4
    assert load(Settings(protocol="sqlite", url="sqlite:///y.db")).url == "sqlite:///y.db"
    assert load(Settings()).lease_s == 10
    with pytest.raises(SettingsError, match="max_attempts in the Settings object"):
        load(Settings(max_attempts=0))
    for section in ({"pool_size": 5}, 5, KafkaSettings()):
        with pytest.raises(SettingsError, match="redis in the Settings object is of type RedisSettings, not "):
            load(Settings(redis=section))  # type: ignore[arg-type]  # on purpose
    with pytest.raises(SettingsError, match="URL or a Settings object"):
        load(5)  # type: ignore[arg-type]


def test_settings_are_frozen() -> None:
    with pytest.raises(AttributeError):
        load().lease_s = 5  # type: ignore[misc]


CANARY = "c4n4ry-s3cret"


def test_a_secret_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", CANARY)
    for settings in (load(), load(f"redis://bob:{CANARY}@h/0"), load(f"redis://h?password={CANARY}")):
        assert settings.redis.password.reveal() == CANARY
        for shown in (
            f"{settings.redis}",
            repr(settings),
            str(settings),
            f"{settings.redis.password}",
            repr(settings.sources()),
        ):
            assert CANARY not in shown
        assert ("redis.password", "***") in [row[:2] for row in settings.sources()]


@pytest.mark.parametrize(
    "url",
    [f"redis://bob:{CANARY}@h/x", f"redis://bob:{CANARY}@h:99999", f"redis://:{CANARY}@h?leese=1", f"foo://a:{CANARY}@h",
     f"redis://h?password={CANARY}&password=2", f"kafka://a:{CANARY}@h", f"redis://h?password={CANARY}&x", f"memory://:{CANARY}@h",
     f"sqlite://:{CANARY}@h", f"redis://bob:{CANARY}@h#x", f"redis://h/x?password={CANARY}"],
)  # fmt: skip
def test_a_secret_is_not_in_an_error(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(url)
    assert CANARY not in str(caught.value)
    with pytest.raises(SettingsError) as caught:
        load(redis={"password": [CANARY]})
    assert CANARY not in str(caught.value)


def test_sources_lists_every_setting_once() -> None:
    rows = load().sources()
    assert [name for name, _, _ in rows] == IDS
    assert {source for _, _, source in rows} == {"default"}
    assert set(SECTIONS) == {setting.section for setting in EVERY} - {""}


def test_every_section_is_read() -> None:
    structs = {
        field.name for field in msgspec.structs.fields(Settings)
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
    }  # fmt: skip
    assert structs == set(SECTIONS)
