"""Tests of the scripts in launch/ and benchmarks/gpu.sh."""
