"""What Prometheus may read: counts of requests and tokens, lengths of thoughts, and the state of each engine.

In: each Running and each HTTP record after its end; a Service to look at. Out: text for GET /metrics. Every
application has a registry of its own. Does not know: routes, what any request said.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ..engine.llm import AsyncLLM
from .logs import Record, usage_of
from .service import Running, Service

CONTENT_TYPE = CONTENT_TYPE_LATEST
TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
KNOWN_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")


class Metrics:
    """The numbers of one application."""

    def __init__(self, service: Service) -> None:
        self._registry = registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"deepfast_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"deepfast_{name}", text, labels, registry=registry, buckets=buckets)

        self._http = counter("http_requests", "HTTP requests answered.", "route", "method", "status")
        self._finished = counter("answers", "Answers that ended, by why.", "model", "finish_reason")
        self._tokens = counter("tokens", "Tokens of prompts, thoughts and answers.", "model", "phase")
        self._hits = counter("prompt_tokens_cached", "Prompt tokens from the prefix cache.", "model")
        self._stops = counter("thought_stops", "Thoughts that ended, by why.", "model", "cause")
        by_mode = ("model", "mode")
        self._thought = histogram("thought_tokens", "Length of thoughts.", TOKENS, *by_mode)
        self._thought_time = histogram("thought_seconds", "Duration of thoughts.", SECONDS, *by_mode)
        self._first = histogram("first_token_seconds", "Time to the first token.", SECONDS, "model")
        self._total = histogram("answer_seconds", "Time to the end of an answer.", SECONDS, "model")
        registry.register(_State(service))
        ProcessCollector(registry=registry)

    def note_http(self, record: Record) -> None:
        """Count an HTTP request under its route, whose names are ours."""
        method = record.method if record.method in KNOWN_METHODS else "other"
        self._http.labels(record.route or "other", method, record.status).inc()

    def note_running(self, running: Running) -> None:
        """Count a request that has ended, or was left."""
        model = running.model
        for variant in range(len(running.streams)):
            done, usage = running.completions.get(variant), usage_of(running, variant)
            self._finished.labels(model, done.finish_reason if done else "abort").inc()
            self._tokens.labels(model, "prompt").inc(usage.prompt_tokens)
            self._tokens.labels(model, "reasoning").inc(usage.reasoning_tokens)
            answer = max(usage.completion_tokens - usage.reasoning_tokens, 0)
            self._tokens.labels(model, "content").inc(answer)
            self._hits.labels(model).inc(usage.cached_tokens)
            if done is None:
                continue
            self._total.labels(model).observe(done.timing.total_s)
            if done.usage.completion_tokens:
                self._first.labels(model).observe(done.timing.first_token_s)
            if done.thinking.stop != "none" or done.usage.reasoning_tokens:
                mode = done.thinking.mode
                self._thought.labels(model, mode).observe(done.usage.reasoning_tokens)
                self._thought_time.labels(model, mode).observe(done.thinking.seconds)
                self._stops.labels(model, done.thinking.stop).inc()

    def text(self) -> bytes:
        """All of it, in Prometheus' format (CONTENT_TYPE)."""
        return generate_latest(self._registry)


class _State(Collector):
    """What is going on at this moment."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Read the service and its engines."""
        active = "Answers that run or wait, remote models included."
        yield GaugeMetricFamily("deepfast_active", active, value=self._service.active)
        gauges: dict[str, GaugeMetricFamily | CounterMetricFamily] = {
            "running": GaugeMetricFamily("deepfast_batch", "Answers in the running batch.", labels=["model"]),
            "waiting": GaugeMetricFamily(
                "deepfast_queue", "Answers waiting for the batch.", labels=["model"]
            ),
            "blocks": GaugeMetricFamily("deepfast_kv_blocks", "Blocks of the KV cache.", labels=["model"]),
            "blocks_used": GaugeMetricFamily(
                "deepfast_kv_blocks_used", "KV blocks that an answer owns.", labels=["model"]
            ),
            "blocks_cached": GaugeMetricFamily(
                "deepfast_kv_blocks_cached", "KV blocks kept for the prefix cache alone.", labels=["model"]
            ),
            "preempted": CounterMetricFamily(
                "deepfast_preemptions", "Answers that gave their blocks up for a while.", labels=["model"]
            ),
        }
        for name, model in self._service.models.items():
            if isinstance(model, AsyncLLM):
                for field, value in model.llm.engine.stats._asdict().items():
                    gauges[field].add_metric([name], value)
        yield from gauges.values()
