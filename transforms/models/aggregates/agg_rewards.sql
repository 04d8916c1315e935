with

cells as (

    select
        *,
        least(greatest(parent_reward, reward_low), reward_high) as prior_mean,
        least(greatest(reward / n_divided_by, reward_low), reward_high) as own_mean

    from {{ ref('int_released_cells_by_segment') }}

),

estimated as (

    select
        *,
        least(greatest({{ shrunk(
            'reward', 'n_divided_by', 'prior_mean',
            'sigma_reward * sigma_reward + prior_mean * prior_mean * sigma_customers * sigma_customers',
            largest_spread('prior_mean', 'reward_low', 'reward_high')
        ) }}, reward_low), reward_high) as shrunk_mean,
        -- no second moment is released: (high - m)(m - low) bounds the variance of what lies between low and high
        {{ half_width_of_mean(
            'own_mean', '(reward_high - own_mean) * (own_mean - reward_low)', 'n_divided_by', 'sigma_reward',
            'sigma_customers'
        ) }} as half_width

    from cells

),

published as (

    select
        release_id,
        window_start,
        window_end,
        unit_of_privacy,
        sigma_reward as sigma,
        cast(null as double) as tau,
        rho,
        delta,
        minimum_customers,
        segment,
        aggregate_bucket,
        strategy,
        n_customers,
        sigma_customers,
        reward as reward_sum,
        {{ estimate_with_bar('mean_reward', 'shrunk_mean', 'own_mean', 'reward_low', 'reward_high') }},
        is_suppressed

    from estimated

)

select * from published
