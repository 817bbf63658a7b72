"""What a run writes: folders with manifests, shards, tars, a report and a card."""

from data_pipeline.collect.output.write import REPORT, write_output

__all__ = ["REPORT", "write_output"]
