"""Orchestration: command line, configuration, planning and running over Dask."""
