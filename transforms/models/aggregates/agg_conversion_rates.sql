with

cells as (

    select
        *,
        least(greatest(parent_rate, 0.0), 1.0) as prior_rate,
        least(greatest(cast(n_conversions as double) / n_divided_by, 0.0), 1.0) as own_rate

    from {{ ref('int_released_cells_by_segment') }}

),

estimated as (

    select
        *,
        least(greatest({{ shrunk(
            'n_conversions', 'n_divided_by', 'prior_rate',
            'sigma_conversions * sigma_conversions + prior_rate * prior_rate * sigma_customers * sigma_customers',
            largest_spread('prior_rate')
        ) }}, 0.0), 1.0) as shrunk_rate,
        {{ half_width_of_mean(
            'own_rate', 'own_rate * (1 - own_rate)', 'n_divided_by', 'sigma_conversions', 'sigma_customers'
        ) }} as half_width

    from cells

),

published as (

    select
        release_id,
        window_start,
        window_end,
        unit_of_privacy,
        sigma_conversions as sigma,
        cast(null as double) as tau,
        rho,
        delta,
        minimum_customers,
        segment,
        aggregate_bucket,
        strategy,
        n_customers,
        sigma_customers,
        n_conversions,
        {{ estimate_with_bar('conversion_rate', 'shrunk_rate', 'own_rate') }},
        is_suppressed

    from estimated

)

select * from published
