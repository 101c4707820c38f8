"""The configuration of alerts: where they are kept, in which schema, and where they go. Frozen."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from nightstream.io.alerts.avro_schema import schema_id
from nightstream.io.alerts.distribution import AlertSink, FileSink
from nightstream.io.alerts.filters import FilterConfig


class KafkaConfig(BaseModel):
    """A Kafka topic to send alerts to. An unknown field is an error. Shown, logged or stored, it tells no password."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    topic: str = Field(min_length=1)  # one message an alert
    settings: dict[str, str | int | float | bool] = Field(repr=False)  # librdkafka's, as they are: bootstrap.servers, SASL, ...
    registry_url: str = Field("", repr=False)  # Confluent's, user:password@ allowed; empty: fixed ids, major * 100 + minor
    subjects: tuple[str, ...] = Field(("alert-packet",), min_length=1)  # the schema is registered under each
    settle_s: float = Field(2.0, ge=0)  # s of quiet at the topic's end after a crash, before the rest is sent

    @field_validator("settings")
    @classmethod
    def _keep_the_promise(cls, settings: dict) -> dict:
        from nightstream.io.alerts.kafka_sink import check_settings

        check_settings(settings)
        return settings


class AlertsConfig(BaseModel):
    """Alerts of a run. Relative paths lie in the run's output folder. An unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: str = "11.1"  # of the Avro packets
    database: str = Field("prompt.duckdb", repr=False)  # file of the embedded database, or postgresql://...
    spool_dir: Path = Path("spool")  # alerts as they are made; durable, the archive points into it
    alerts_dir: Path = Path("alerts")  # alerts as they are published: one Avro file a visit, and users' own folders
    kafka: KafkaConfig | None = None  # set: alerts go there, not to alerts_dir
    filters: Path | None = None  # folder of users' filters; relative to the working folder
    filter_limits: FilterConfig = Field(default_factory=FilterConfig)  # what a user's filters may take
    ephemerides: Path | None = None  # predicted positions of Solar System objects; relative to the working folder
    drain_timeout_s: float = Field(60.0, ge=0)  # s that the end of a run waits for unsent alerts; a later run sends the rest

    @field_validator("schema_version")
    @classmethod
    def _has_an_id(cls, version: str) -> str:
        schema_id(version)
        return version

    def located(self, output_dir: Path) -> AlertsConfig:
        """The same, with paths that no longer depend on where the run writes."""
        database = self.database if "://" in self.database else str(output_dir / self.database)
        return self.model_copy(
            update={"database": database, "spool_dir": output_dir / self.spool_dir, "alerts_dir": output_dir / self.alerts_dir}
        )


def make_sink(config: AlertsConfig) -> AlertSink:
    """The sink that ``config`` asks for; waits for no connection. Raises ConfigError for wrong Kafka settings."""
    if config.kafka is None:
        return FileSink(config.alerts_dir)
    from nightstream.io.alerts.kafka_sink import KafkaSink

    kafka = config.kafka
    return KafkaSink(
        kafka.topic, kafka.settings, registry_url=kafka.registry_url, subjects=kafka.subjects, settle_s=kafka.settle_s
    )
