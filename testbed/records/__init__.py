"""What a frame cost: one measurement, its Parquet rows, and what a run came to."""
