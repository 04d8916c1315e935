"""Who was in the log: told from a policy that learned from exact counts, not from one that learned from noisy tables.

The AUC of 100 canaries in each of 4 logs has a standard error of about 0.03. The release's was 0.51 in cells of 20
customers and 0.54 in cells of 100, so a correct one is above 0.65 in fewer than one of a thousand runs.
"""

import pytest

from registry.privacy.membership import membership_auc
from registry.privacy.settings import PrivacySettings


def test_a_policy_from_noisy_tables_hides_who_took_part_and_one_from_exact_counts_does_not() -> None:
    assert membership_auc(20, "aggregate", n_repeats=4) <= 0.65
    assert membership_auc(20, "individual", n_repeats=1) > 0.9
    assert membership_auc(20, "suppressed", n_repeats=1) > 0.9, "suppressing small cells alone hides nobody"


def test_the_attack_bites_where_the_noise_is_too_small() -> None:
    """An audit that cannot fail is no test: at 2,500 times the budget the same release gives members away."""
    loud = PrivacySettings(rho=200.02, minimum_customers=5)
    assert membership_auc(20, "aggregate", settings=loud, n_repeats=2) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize("rows_per_cell", [20, 100])
def test_the_same_holds_for_larger_cells_and_more_canaries(rows_per_cell: int) -> None:
    assert membership_auc(rows_per_cell, "aggregate", n_repeats=12) <= 0.65
    assert membership_auc(rows_per_cell, "individual") > 0.9
    assert membership_auc(rows_per_cell, "suppressed") > 0.9
