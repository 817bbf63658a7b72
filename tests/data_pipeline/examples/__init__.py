"""Tests of data_pipeline.examples."""
