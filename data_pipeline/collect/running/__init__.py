"""Runs the stages: in this process, in several, or on Apache Beam; the same bytes by all."""
