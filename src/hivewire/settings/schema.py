"""Every setting: its name, type, default, limits, its name in the environment, and what it means.

The guide's table, the reading and the refusals are all made from the annotations here.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from hivewire.settings.about import About as About
from hivewire.settings.about import Secret as Secret
from hivewire.settings.ledger import LedgerSettings, PostgresSettings

Mib: Final = 1_048_576

_NO_TRIM: Final = "unread messages are never dropped; as a cap it makes senders wait"
_NO_EXPIRY: Final = "a time to live is per message, and what runs out goes to the dead letters"


class InMemorySettings(msgspec.Struct, frozen=True, kw_only=True):
    """`memory://`, names of `InMemoryProtocolConfig`."""

    max_queue_size: Annotated[
        int | None,
        About("cap of each agent's queue", least=1, reference="1000", why="a full queue makes senders wait; 1,000 "
              "is one burst of one sender", sets="queue_cap"),
    ] = None  # fmt: skip
    max_message_size: Annotated[
        int | None, About("largest content", least=1, most=1024 * Mib, sets="max_message_size_bytes")
    ] = None


class RedisSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`redis://`, names of `RedisProtocolConfig`."""

    addr: Annotated[
        str,
        About("host:port of the server; several with commas are nodes of a cluster, or sentinels", env="REDIS_ADDR"),
    ] = "localhost:6379"
    cluster: Annotated[bool, About("the server is a cluster; several addresses say so, too")] = False
    sentinel_master: Annotated[
        str | None, About("name of the master; the addresses are those of the sentinels that watch it")
    ] = None
    sentinel_username: Annotated[str | None, About("user of the sentinels' access list")] = None
    sentinel_password: Annotated[Secret, About("password of the sentinels")] = Secret()
    username: Annotated[str | None, About("user of the server's access list")] = None
    password: Annotated[Secret, About("password", env="REDIS_PASSWORD")] = Secret()
    db: Annotated[int, About("number of the database; a cluster has only 0", env="REDIS_DB", least=0)] = 0
    tls: Annotated[bool, About("encrypt the connection; `rediss://` sets it")] = False
    tls_ca_file: Annotated[
        str | None, About("PEM file of the authorities that are trusted; none: those of the system")
    ] = None
    tls_cert_file: Annotated[str | None, About("PEM file of our own certificate, if the server asks for one")] = None
    tls_key_file: Annotated[str | None, About("PEM file of its key, if that is not in the same file")] = None
    tls_check_host: Annotated[bool, About("the server's certificate must name the host that we connect to")] = True
    pool_size: Annotated[
        int,
        About("connections for messages, to each server; all of one queue goes over one of them", env="REDIS_POOL_SIZE",
              least=1, most=1000, reference="10", why="a connection is shared by all senders, and full batches on one "
              "are faster than small ones on many"),
    ] = 1  # fmt: skip
    min_idle_conns: Annotated[int, About("of these, how many are opened at the start and kept open", least=0)] = 5
    max_retries: Annotated[
        int,
        About("repetitions of a command that only asks or that names what it changes, when the connection breaks; "
              "sends are repeated until `timeout_s`", least=0),
    ] = 3  # fmt: skip
    dial_timeout_s: Annotated[float, About("time to connect", least=0.001)] = 5.0
    read_timeout_s: Annotated[float, About("longest silence while an answer is due", least=0.001)] = 3.0
    write_timeout_s: Annotated[
        float, About("longest time that the network takes nothing of what is sent", least=0.001)
    ] = 3.0
    wait_replicas: Annotated[
        int, About("replicas that must have a message before `send` returns (`WAIT`)", least=0)
    ] = 0
    wait_timeout_s: Annotated[float, About("time for them to have it; then the send is repeated", least=0.001)] = 1.0
    message_ttl_s: Annotated[
        float | None,
        About("time to live of each message", env="REDIS_MESSAGE_TTL", least=0.001, reference="24h", why=_NO_EXPIRY,
              sets="message_ttl_s"),
    ] = None  # fmt: skip
    max_message_size: Annotated[
        int | None, About("largest content", least=1, most=1024 * Mib, sets="max_message_size_bytes")
    ] = None
    stream_max_len: Annotated[
        int | None,
        About("cap of each agent's queue", least=1, reference="10000", why=_NO_TRIM, sets="queue_cap"),
    ] = None
    consumer_group: Annotated[
        str,
        About("the group of the reference's readers: what it has acknowledged is not handled again when ours come for "
              "the first time; ours has a group of its own, so that its readers miss nothing",
              env="REDIS_CONSUMER_GROUP"),
    ] = "multiagent"  # fmt: skip
    inlet: Annotated[
        bool,
        About("take what programs of the reference send to agents that are served here (multiagent:stream:<agent>)"),
    ] = True
    interop: Annotated[
        bool,
        About("send where programs of the reference read; what they do to their streams, trimming too, holds then"),
    ] = False
    consumer_name: Annotated[str | None, About("name of this consumer; none: a random one", sets="worker_name")] = None
    block_timeout_s: Annotated[
        float,
        About("wait for news before a queue is read without any; while there is none, up to five times that",
              least=0.001, reference="5s", why="so long may a message wait whose bell was lost, or that another "
              "program has stored"),
    ] = 2.0  # fmt: skip
    pipeline_size: Annotated[
        int | None,
        About("most commands under way on one connection; none: no limit", least=1, reference="100",
              why="a limit makes full batches wait for answers that they do not need"),
    ] = None  # fmt: skip
    flush_interval_s: Annotated[
        float,
        About("longest time that commands wait for others, or for `pipeline_size` of them, before they are sent",
              least=0, reference="100ms", why="what is sent in one turn of the loop leaves together; waiting on an "
              "idle line only adds latency"),
    ] = 0.0  # fmt: skip


class KafkaSettings(msgspec.Struct, frozen=True, kw_only=True):
    """`kafka://`, names of `KafkaProtocolConfig`."""

    brokers: Annotated[tuple[str, ...], About("host:port of brokers, with commas", env="KAFKA_BROKERS")] = (
        "localhost:9092",
    )
    group_id: Annotated[str, About("consumer group", env="KAFKA_GROUP_ID")] = "multiagent-group"
    client_id: Annotated[
        str | None, About("name of this client; none: a random one", env="KAFKA_CLIENT_ID", sets="worker_name")
    ] = None
    topic_prefix: Annotated[str, About("topics are `<prefix>-<agent>`", env="KAFKA_TOPIC_PREFIX")] = "multiagent"
    num_partitions: Annotated[int, About("of a new topic", env="KAFKA_NUM_PARTITIONS", least=1)] = 3
    replication_factor: Annotated[int, About("of a new topic", env="KAFKA_REPLICATION_FACTOR", least=1)] = 1
    message_ttl_s: Annotated[
        float | None,
        About("time to live of each message", env="KAFKA_MESSAGE_TTL", least=0.001, reference="168h", why=_NO_EXPIRY,
              sets="message_ttl_s"),
    ] = None  # fmt: skip
    max_message_size: Annotated[
        int | None, About("largest content", least=1, most=1024 * Mib, sets="max_message_size_bytes")
    ] = None
    require_acks: Annotated[
        Literal["all", "1", "0"],
        About("who must have a message before `send` returns: all that are in sync, the leader, nobody", reference="1",
              why="with 1 the loss of the leader loses messages that were confirmed"),
    ] = "all"  # fmt: skip
    username: Annotated[str | None, About("user of the brokers")] = None
    password: Annotated[Secret, About("password of the user")] = Secret()
    sasl_mechanism: Annotated[
        Literal["none", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"],
        About("how the user is shown to the brokers; with PLAIN the password goes to them as it is: encrypt"),
    ] = "none"
    tls: Annotated[bool, About("encrypt the connections")] = False
    tls_ca_file: Annotated[
        str | None, About("PEM file of the authorities that are trusted; none: those of the system")
    ] = None
    tls_cert_file: Annotated[str | None, About("PEM file of our own certificate, if the broker asks for one")] = None
    tls_key_file: Annotated[str | None, About("PEM file of its key, if that is not in the same file")] = None
    tls_check_host: Annotated[bool, About("the broker's certificate must name the host that we connect to")] = True
    group_protocol: Annotated[
        Literal["classic", "consumer"],
        About("how partitions are shared out; `consumer` (KIP-848) moves them without stopping the others, but a dead "
              "process is noticed after the brokers' own time, 45 s unless they are told otherwise"),
    ] = "classic"  # fmt: skip
    share_groups: Annotated[
        bool,
        About("experimental: the brokers lend out the messages of competing queues that are new, for 30 s each "
              "(KIP-932); for short work only, and for all processes of a queue alike"),
    ] = False  # fmt: skip
    compression: Annotated[Literal["none", "gzip", "snappy", "lz4", "zstd"], About("of batches")] = "snappy"
    min_bytes: Annotated[int, About("least of one fetch", least=1)] = 1
    max_bytes: Annotated[int, About("most of one fetch", least=1)] = 10_000_000
    max_wait_s: Annotated[
        float,
        About("longest wait of a fetch", least=0.001, reference="500ms", why="a partition that was taken over is read "
              "when the fetch that is under way has ended"),
    ] = 0.1  # fmt: skip
    read_batch_timeout_s: Annotated[float, About("longest wait for a batch", least=0.001)] = 10.0
    commit_interval_s: Annotated[float, About("longest time between commits", least=0.001)] = 1.0
    write_timeout_s: Annotated[float, About("time for a batch to be confirmed", least=0.001)] = 10.0
    batch_size: Annotated[
        int,
        About("most messages of one batch", least=1, reference="100", why="a batch is what waits anyhow; cut into "
              "hundreds it costs both sides twice the CPU"),
    ] = 10_000  # fmt: skip
    batch_timeout_s: Annotated[
        float,
        About("time that a batch waits for more", least=0, reference="100ms", why="batches form while the one "
              "before is on the wire; waiting on an idle line only adds latency"),
    ] = 0.0  # fmt: skip
    async_: Annotated[Literal["false"], About("`send` returns when the message is stored; nothing else is offered")] = (
        "false"
    )
    max_attempts: Annotated[int, About("tries of one produce request", least=1)] = 3


class LlmSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The language model of planners and ready agents."""

    model: Annotated[
        str | None, About("`openai:NAME`, `anthropic:NAME`, or `recorded:PATH` for answers kept in a file")
    ] = None
    api_key: Annotated[
        Secret, About("key of the provider; none: the variable that its client reads, such as `OPENAI_API_KEY`")
    ] = Secret()
    base_url: Annotated[
        str | None, About("where the API is, for other providers and local servers; none: the provider's own")
    ] = None
    timeout_s: Annotated[float, About("time for one answer", least=0.001)] = 120.0
    max_attempts: Annotated[
        int, About("times that an answer is asked for while the provider is not available", least=1)
    ] = 4


class BudgetSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What models may cost. Days and months are those of UTC."""

    price_file: Annotated[
        str | None, About("JSON with the price of each model, for a million tokens: `{MODEL: {input: 3, output: 15}}`")
    ] = None
    cheaper: Annotated[
        str | None, About("name of the model that is asked instead when a limit is reached; none: nothing is asked")
    ] = None
    is_split: Annotated[
        bool, About("each subtask of a plan may spend its equal share of what the run may, and no more")
    ] = False
    run_tokens: Annotated[int | None, About("most tokens of one run", least=0)] = None
    run_money: Annotated[float | None, About("most money of one run", least=0)] = None
    run_calls: Annotated[int | None, About("most calls of one run", least=0)] = None
    run_wall_s: Annotated[float | None, About("time after a run's first call in which it may call", least=0)] = None
    day_tokens: Annotated[int | None, About("most tokens of one day", least=0)] = None
    day_money: Annotated[float | None, About("most money of one day", least=0)] = None
    month_tokens: Annotated[int | None, About("most tokens of one month", least=0)] = None
    month_money: Annotated[float | None, About("most money of one month", least=0)] = None


ProtocolType = Literal["inmemory", "sqlite", "redis", "kafka", "hybrid"]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, frozen. Made by `load`, which reads code, environment and `hivewire.toml`."""

    protocol: Annotated[ProtocolType, About("where messages are kept", env="PROTOCOL_TYPE")] = "inmemory"
    url: Annotated[
        str | None,
        About("`memory://NAME`, `sqlite:///PATH`, `redis://…`, `rediss://…` or `kafka://…`; names the protocol, too"),
    ] = None
    lease_s: Annotated[
        float,
        About("silence after which a process counts as dead; on Kafka 6 s unless set, and at least that", least=1),
    ] = 10.0
    max_attempts: Annotated[int, About("attempts before a message is a dead letter", least=1)] = 5
    retry_first_s: Annotated[float, About("longest wait before the second attempt; doubles then", least=0)] = 1.0
    retry_most_s: Annotated[float, About("longest wait before any attempt", least=0)] = 60.0
    max_message_size_bytes: Annotated[int, About("largest content", least=1, most=1024 * Mib)] = Mib
    handler_timeout_s: Annotated[float, About("time that one handler may take", least=0.001)] = 3600.0
    idempotency_window_s: Annotated[float, About("how long an idempotency key is kept", least=0.001)] = 3600.0
    dedup_window_ids: Annotated[int, About("settled ids kept for each shard", least=1)] = 100_000
    dedup_window_s: Annotated[float, About("how long a settled id is kept", least=0.001)] = 600.0
    queue_cap: Annotated[
        int | None, About("messages in one agent's queue; none: 100,000 in memory, 1,000,000 elsewhere", least=1)
    ] = None
    shards: Annotated[int, About("of a new queue", least=1, most=1024)] = 8
    message_ttl_s: Annotated[float | None, About("time to live of messages that name none", least=0.001)] = None
    require_durable: Annotated[bool, About("refuse to start on a store that loses messages with its process")] = False
    worker_name: Annotated[str | None, About("name of this process in leases and dead letters; none: made up")] = None
    dead_letter_keep_s: Annotated[
        float | None, About("dead letters older than this are purged, counted and logged; none: kept for ever", least=1)
    ] = None
    blobs: Annotated[
        str,
        About("where large contents are kept: `none`, `folder:///PATH`, `sqlite:///PATH`, `s3://BUCKET/PREFIX`, or "
              "`auto`: beside the queues on SQLite and Redis, nowhere else"),
    ] = "auto"  # fmt: skip
    claim_check_bytes: Annotated[
        int, About("a message above this goes there, its queue holds a reference", least=1)
    ] = 262_144
    trail: Annotated[
        Literal["off", "trouble", "all"],
        About("what `hivewire explain` can tell: nothing recorded, all but the plain good path, or everything"),
    ] = "trouble"
    trail_keep_s: Annotated[float, About("how long the trail is kept", least=1)] = 604_800.0
    trail_bytes: Annotated[int, About("most that the trail may hold; the oldest goes first", least=1)] = 16 * Mib
    sqlite_synchronous: Annotated[
        Literal["full", "normal"],
        About("`full`: on the disk when `send` returns; `normal`: survives the process, not the power"),
    ] = "full"
    inmemory: InMemorySettings = InMemorySettings()
    redis: RedisSettings = RedisSettings()
    kafka: KafkaSettings = KafkaSettings()
    llm: LlmSettings = LlmSettings()
    budget: BudgetSettings = BudgetSettings()
    ledger: LedgerSettings = LedgerSettings()
    postgres: PostgresSettings = PostgresSettings()
    origins: dict[str, str] = {}
    """Where each value that is not a default came from, by dotted name. See `sources`."""

    def sources(self) -> list[tuple[str, object, str]]:
        """(name, value, source) of every setting; a secret shows as `***`."""
        rows: list[tuple[str, object, str]] = []
        for setting in every_setting():
            holder = getattr(self, setting.section) if setting.section else self
            value = getattr(holder, setting.field)
            shown = str(value) if isinstance(value, Secret) else value
            rows.append((setting.name, shown, self.origins.get(setting.name, "default")))
        return rows


class Setting(msgspec.Struct, frozen=True):
    """One setting, as the reader and the guide see it."""

    section: str
    field: str
    type: Any
    default: Any
    about: About

    @property
    def name(self) -> str:
        return f"{self.section}.{self.field.rstrip('_')}" if self.section else self.field

    @property
    def env(self) -> str:
        """Its name in the environment: the reference's, or `HIVEWIRE_` and its name."""
        return self.about.env or f"HIVEWIRE_{self.name.replace('.', '_').upper()}"


SECTIONS: Final[dict[str, type[msgspec.Struct]]] = {
    "inmemory": InMemorySettings,
    "redis": RedisSettings,
    "kafka": KafkaSettings,
    "llm": LlmSettings,
    "budget": BudgetSettings,
    "ledger": LedgerSettings,
    "postgres": PostgresSettings,
}

_found: list[Setting] = []


def every_setting() -> list[Setting]:
    """All settings, in the order of the guide."""
    if not _found:
        made = []
        structs: dict[str, type[msgspec.Struct]] = {"": Settings, **SECTIONS}
        for section, struct in structs.items():
            for field in msgspec.structs.fields(struct):
                about = next(
                    (item for item in getattr(field.type, "__metadata__", ()) if isinstance(item, About)), None
                )
                if about is not None:
                    made.append(Setting(section, field.name, field.type.__origin__, field.default, about))
        _found[:] = made
    return _found
