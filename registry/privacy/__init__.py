"""What may leave the restricted zone: mechanisms, budget, plan, release, private evidence, audit.

Nothing here reads a warehouse or knows Dagster: exact integers in, noisy ones and a ledger row out.
"""
