"""Devices and hosts: sharding, and the processes of a run."""
