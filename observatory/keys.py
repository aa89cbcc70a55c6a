"""Every key, spelled in one room.

    obs1:<namespace>:<feature>:{<tag>}:<rest>
    obs1:<namespace>:cache:<name>:{<tag>}:<rest>

`1` is the layout's version. The feature stands before the tag so that tracking prefixes and ACL patterns can name it. The tag
is a partition, not an identity: it decides the slot, and all keys of one script share it (on Cluster; elsewhere a script may
mix tags). Parts that come from users are encoded, so that no identifier can leave its place.
"""

import re
from hashlib import blake2b
from typing import Final, NewType
from urllib.parse import quote, unquote

Key = NewType("Key", str)
"""Only this room makes one."""

LAYOUT: Final = 1
LIMITER_PARTITIONS: Final = 1024
WINDOW_US: Final = 10_000_000
"""The finest window of the metrics: 10 s."""

PERMANENT: Final = re.compile(
    r"obs1:[^:]+:("
    r"presence:\{n\}:record"  # what the namespace is: layout, partitions, salt
    r"|metrics:\{t\d+\}:(names|sizes|flushes|start|due|rolled|total:.+)"  # what is counted, and the lifetime totals
    r"|events:\{t\d+\}:(stream|offset|ledger|dead)"  # bounded by their length; the offset is the place in the stream
    r"|rate_limiter:\{r\d*\}:fence"  # which server the state was last written by
    r"|rate_limiter:\{r\d*\}:fence:holds:(open|ledger)"  # of the holds: bounded by how many are open; four numbers
    r"|leases:\{l\}:fences"  # a fence must never step back
    r"|breaker:\{b\}:forced"  # what somebody has decided stands until somebody decides otherwise
    r")"
)
"""The keys that may live without a TTL."""


def part(text: str) -> str:
    """One part of a key: percent-encoded; above 96 characters replaced by its digest (`~` never starts an encoded part)."""
    encoded = quote(text, safe="", errors="surrogatepass")
    if len(encoded) <= 96 and not encoded.startswith("~"):
        return encoded
    return "~" + blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


class Keys:
    """The keys of one namespace. `partitions` and `salt` come from the namespace's record, so that every process agrees."""

    __slots__ = ("_buckets", "_prefix", "_salt", "namespace", "partitions")

    def __init__(self, namespace: str, partitions: int, salt: bytes) -> None:
        self.namespace = namespace
        self.partitions = partitions
        self._salt = salt
        self._prefix = f"obs{LAYOUT}:{namespace}"
        self._buckets: dict[tuple[str, str], Key] = {}

    def partition_of(self, text: str, partitions: int | None = None) -> int:
        """Which partition a text falls into. Keyed, so that nobody outside can choose a slot."""
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=self._salt).digest()
        return int.from_bytes(digest) % (partitions or self.partitions)

    # rate limiter
    def bucket(self, limit: str, identity: str, form: str = "") -> Key:
        """A string, and by suffix what stands beside it (lua/rate_limiter/_state.lua, _holds.lua)."""
        limit = f"{limit}{form}"
        known = self._buckets.get((limit, identity))
        if known is not None:
            return known
        tag = self.partition_of(identity, LIMITER_PARTITIONS)
        if len(self._buckets) >= 10_000:
            self._buckets.clear()
        key = self._buckets[limit, identity] = Key(f"{self._prefix}:rate_limiter:{{r{tag}}}:{limit}:{part(identity)}")
        return key

    def buckets(self) -> str:
        """What SCAN takes to find the state of every limit and identity, and what stands beside it."""
        return f"{self._prefix}:rate_limiter:{{r[0-9]*}}:*"

    def found_bucket(self, key: bytes) -> tuple[Key, str, str] | None:
        """A found key, its limit and identity (`~` and a digest where it was too long); None: it stands beside a bucket."""
        rest = key.decode().removeprefix(f"{self._prefix}:rate_limiter:").split(":")
        if len(rest) != 3:
            return None
        return Key(key.decode()), rest[1].partition(".")[0], unquote(rest[2], errors="surrogatepass")

    def settled(self, hold: str) -> Key:  # string: JSON of what a reservation was settled with over HTTP, and of the answer
        return Key(f"{self._prefix}:rate_limiter:{{r}}:settled:{part(hold)}")

    def fence(self, bucket: Key | None = None) -> Key:  # string "<replication id>,<run id>,<fenced since us>"
        """The record of the server that the state is on: one per namespace; on Cluster one per slot, since slots may move."""
        tag = "{r}" if bucket is None else bucket[bucket.index("{") : bucket.index("}") + 1]
        return Key(f"{self._prefix}:rate_limiter:{tag}:fence")

    def limiter_fences(self) -> tuple[Key, ...]:
        """Of every slot; on Cluster."""
        return tuple(Key(f"{self._prefix}:rate_limiter:{{r{tag}}}:fence") for tag in range(LIMITER_PARTITIONS))

    def shape(self, limit: str) -> Key:  # string: the numbers that a process of the fleet last asked a limit with
        return Key(f"{self._prefix}:rate_limiter:{{r}}:shape:{limit}")

    def alert(self, limit: str, identity: str, fraction: float, capacity: int, window: int) -> Key:  # string: told already
        """Of what amount is part of it: a budget that is raised is told of again."""
        return Key(f"{self._prefix}:rate_limiter:{{r}}:alert:{limit}:{part(identity)}:{fraction:g}:{capacity}:{window}")

    def charged(self, limit: str) -> Key:  # zset: identity of a limit that counts usd, by the last moment somebody told (us)
        return Key(f"{self._prefix}:rate_limiter:{{r}}:charged:of:{limit}")

    def charged_limits(self) -> Key:  # hash: such a limit -> JSON of all of it
        return Key(f"{self._prefix}:rate_limiter:{{r}}:charged:limits")

    # alerts, in the slot of what is told already
    def alerts_outbox(self) -> Key:  # stream: id, type and body of what waits for webhooks
        return Key(f"{self._prefix}:alerts:{{r}}:outbox")

    def alerts_receivers(self) -> Key:  # zset: "digest event ..." of a leader's webhooks, by when it last said so (ms)
        return Key(f"{self._prefix}:alerts:{{r}}:receivers")

    def alert_sent(self, place: str, receiver: str) -> Key:  # string: a webhook has acknowledged this entry
        return Key(f"{self._prefix}:alerts:{{r}}:sent:{place}:{receiver}")

    # metrics
    def metric_writer(self, partition: int, writer: str) -> Key:  # string: the writer's watermark
        return Key(f"{self._prefix}:metrics:{{t{partition}}}:writer:{writer}")

    def metric_names(self, partition: int) -> Key:  # hash: metric -> JSON of its definition
        return Key(f"{self._prefix}:metrics:{{t{partition}}}:names")

    def metric_flushes(self, partition: int) -> Key:  # string: batches added, ever
        return Key(f"{self._prefix}:metrics:{{t{partition}}}:flushes")

    def metric_sizes(self, partition: int) -> Key:  # hash: metric -> how many series it has
        return Key(f"{self._prefix}:metrics:{{t{partition}}}:sizes")

    def metric_start(self) -> Key:  # string: since when exported totals count (us); all exporters say the same
        return Key(f"{self._prefix}:metrics:{{t0}}:start")

    def metric_total(self, partition: int, metric: str) -> Key:  # hash: series|part -> integer, for ever
        return Key(f"{self._prefix}:metrics:{{t{partition}}}:total:{metric}")

    def metric_window(self, partition: int, window: int, metric: str) -> Key:  # hash: series|part -> integer, of 10 s
        return Key(f"{self._prefix}:metrics:{{t{partition}}}:window:{window}:{metric}")

    def open_windows(self, partition: int) -> Key:  # zset: "window:metric", by window
        return Key(f"{self._prefix}:metrics:{{t{partition}}}:open")

    def listed_windows(self, partition: int, metric: str) -> Key:  # zset: the metric's open windows, by themselves
        return Key(f"{self._prefix}:metrics:{{t{partition}}}:listed:{metric}")

    def metric_blocks(self, partition: int, level: str, index: int, metric: str) -> Key:  # hash: index -> block of windows
        return Key(f"{self._prefix}:metrics:{{t{partition}}}:{level}:{index}:{metric}")

    def due(self, partition: int) -> Key:  # zset: "level:index:metric", by its end (us)
        return Key(f"{self._prefix}:metrics:{{t{partition}}}:due")

    def rolled(self, partition: int) -> Key:  # hash: metric -> token of the last change of its blocks
        return Key(f"{self._prefix}:metrics:{{t{partition}}}:rolled")

    def gauges(self, partition: int, writer: str) -> Key:  # hash: metric + series -> the writer's current value
        return Key(f"{self._prefix}:metrics:{{t{partition}}}:gauge:{writer}")

    def gauge_writers(self, partition: int) -> Key:  # zset: writer, by the moment until which its gauges stand (us)
        return Key(f"{self._prefix}:metrics:{{t{partition}}}:gauges")

    def exemplars(self, partition: int, generation: int) -> Key:  # hash: metric + series -> JSON of one call to look at
        return Key(f"{self._prefix}:metrics:{{t{partition}}}:exemplars:{generation}")

    # events
    def stream(self, partition: int) -> Key:  # stream: entries of up to 100 events
        return Key(f"{self._prefix}:events:{{t{partition}}}:stream")

    def offset(self, partition: int) -> Key:  # string: the last entry that was applied
        return Key(f"{self._prefix}:events:{{t{partition}}}:offset")

    def ledger(self, partition: int) -> Key:  # hash: accepted, applied, dead, dropped, replayed
        return Key(f"{self._prefix}:events:{{t{partition}}}:ledger")

    def dead(self, partition: int) -> Key:  # stream: events that could not be applied, with the reason
        return Key(f"{self._prefix}:events:{{t{partition}}}:dead")

    def event_writer(self, partition: int, writer: str) -> Key:  # string: the writer's watermark
        return Key(f"{self._prefix}:events:{{t{partition}}}:writer:{writer}")

    def seen(self, partition: int, generation: int) -> Key:  # set: ids accepted in one generation
        return Key(f"{self._prefix}:events:{{t{partition}}}:seen:{generation}")

    # tracing
    def kept_traces(self) -> Key:  # zset: id of an unsampled trace that is sent all the same, by when it was told (us)
        return Key(f"{self._prefix}:tracing:{{n}}:kept")

    # leases
    def lease(self, name: str) -> Key:  # string "<owner> <fence>", expires with the lease
        return Key(f"{self._prefix}:leases:{{l}}:lease:{part(name)}")

    def fences(self) -> Key:  # hash: name -> the last fence given out
        return Key(f"{self._prefix}:leases:{{l}}:fences")

    # breaker
    def breaker(self, name: str) -> Key:  # hash: what the fleet knows of one breaker (lua/breaker/_state.lua)
        return Key(f"{self._prefix}:breaker:{{b}}:state:{part(name)}")

    def breakers_forced(self) -> Key:  # hash: name -> "open|closed <since us> <reason>"
        return Key(f"{self._prefix}:breaker:{{b}}:forced")

    def breakers_known(self) -> Key:  # zset: name, by the moment of the last report (us)
        return Key(f"{self._prefix}:breaker:{{b}}:known")

    def breakers_version(self) -> Key:  # string: changes with every change of a breaker or a pause
        return Key(f"{self._prefix}:breaker:{{b}}:version")

    def pauses(self) -> Key:  # zset: digest of provider, model and key, by the moment until which their calls pause (us)
        return Key(f"{self._prefix}:breaker:{{b}}:pauses")

    def paused(self, *whose: str) -> str:
        """Provider, model and key as a digest that says nothing of them to whoever does not know the namespace's salt."""
        text = "".join(f"{len(one)}:{one}" for one in whose).encode("utf-8", "surrogatepass")
        return blake2b(text, digest_size=16, key=self._salt).hexdigest()

    # retry
    def retry_budget(self, name: str) -> Key:  # hash: calls and retries of the last seconds (lua/retry/exchange.lua)
        return Key(f"{self._prefix}:retry:{{y}}:budget:{part(name)}")

    # cache
    def entry(self, cache: str, fingerprint: str, key: str, scope: str = "") -> Key:  # string: an entry (cache/entry.py)
        """Every generation of a class has its own, in one slot. scope: whose, encoded; it stands in a place of its own."""
        tag = self.partition_of(f"{cache}\0{scope}\0{key}", 2**32)
        return Key(f"{self._prefix}:cache:{cache}:{{c{tag:08x}}}:{scope}:{part(key)}:{fingerprint}")

    @staticmethod
    def of_generation(entry: Key, fingerprint: str) -> Key:
        """The same entry as another generation of its class has it."""
        return Key(f"{entry.rpartition(':')[0]}:{fingerprint}")

    @staticmethod
    def computing(entry: Key) -> Key:  # string: the token of who computes the entry, or "!" and why that failed
        layout, namespace, _, rest = entry.split(":", 3)
        return Key(f"{layout}:{namespace}:computing:{rest}")

    def cache_record(self, cache: str, scope: str = "") -> Key:  # string "<version> <fingerprint> ...": see cache/versions.py
        tag = self.partition_of(f"{cache}\0{scope}", 2**32)
        return Key(f"{self._prefix}:cache:{cache}:{{v{tag:08x}}}:record:{scope}")

    def cache_tag(self, cache: str, digest: str, scope: str = "") -> Key:  # string: the version of one tag of a cache
        tag = self.partition_of(f"{cache}\0{scope}\0{digest}", 2**32)
        return Key(f"{self._prefix}:cache:{cache}:{{v{tag:08x}}}:tag:{scope}:{digest}")

    def cached(self, cache: str) -> str:
        """What every key of a cache begins with that is kept near: for CLIENT TRACKING. Leases have another room."""
        return f"{self._prefix}:cache:{cache}:"

    # answers
    @staticmethod
    def answer_log(entry: Key) -> tuple[Key, Key]:
        """Of a stream on its way, in the slot of the entry that it becomes, and out of sight of who tracks entries: a hash of
        what has come of it, and a string that is there while somebody reads that."""
        log = entry.replace(":cache:", ":answers:", 1)
        return Key(f"{log}:log"), Key(f"{log}:followed")

    # all of them
    def pattern(self) -> str:
        """What SCAN takes to find every key of the namespace."""
        return f"{self._prefix}:*"


# Presence is known before the record has been read.
def record(namespace: str) -> Key:  # hash: layout, partitions, salt, writers, log_level
    return Key(f"obs{LAYOUT}:{namespace}:presence:{{n}}:record")


def members(namespace: str) -> Key:  # zset: instance, by the moment it was last seen (us)
    return Key(f"obs{LAYOUT}:{namespace}:presence:{{n}}:members")


def peers(namespace: str, role: str) -> Key:  # zset: the instances of one role, likewise
    return Key(f"obs{LAYOUT}:{namespace}:presence:{{n}}:peers:{role}")


def instances(namespace: str) -> Key:  # hash: instance -> JSON of what it says of itself
    return Key(f"obs{LAYOUT}:{namespace}:presence:{{n}}:instances")
