"""What is true on disk: inventories, drops, stores, commits and runs. Knows neither torch nor Dask."""
