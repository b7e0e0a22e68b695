"""The batch job: Parquet in, Ray Data, Parquet out."""
