"""Which policy is live: bundles, the gate, the rollout ledger and the aliases. Knows nothing of Dagster."""
