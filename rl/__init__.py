"""How a policy is learned and judged. Arrays in, objects out; knows nothing of Dagster, MLflow, dbt or DuckDB."""
