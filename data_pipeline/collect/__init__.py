"""Collect an identity data set: plain functions over records, stage by stage."""
