"""What became of spans: counted where they are exported, read where the metrics are told."""

from attrs import define


@define
class TelemetryCounts:
    """How many spans have left this process, and how many were given up, since it started."""

    exported: int = 0
    """Spans that a collector has taken."""
    dropped: int = 0
    """Spans that were given up: the queue was full, or the collector refused them or stayed away."""
