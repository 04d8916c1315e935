with

cells as (

    select
        *,
        {{ segment_of('aggregate_bucket') }} as segment,
        {{ bucket_of_all_segments('aggregate_bucket') }} as overall_aggregate_bucket

    from {{ ref('stg_released__cells') }}

),

unioned as (

    {{ by_segment_and_all(
        'cells',
        keys=['strategy', 'reward_low', 'reward_high'],
        merged=['aggregate_bucket'],
        sums={'n_customers': 'bigint', 'n_conversions': 'bigint', 'reward': 'double'},
        sigmas=['sigma_customers', 'sigma_conversions', 'sigma_reward']
    ) }}

),

summed as (

    select
        *,
        greatest(sum(n_customers) over parent, 1) as parent_customers,
        sum(n_conversions) over parent as parent_conversions,
        sum(reward) over parent as parent_reward_sum,
        sum(sigma_customers * sigma_customers) over parent as parent_customers_noise,
        sum(sigma_conversions * sigma_conversions) over parent as parent_conversions_noise,
        sum(sigma_reward * sigma_reward) over parent as parent_reward_noise,
        least(greatest(
            cast(sum(n_conversions) over everything as double) / greatest(sum(n_customers) over everything, 1), 0.0
        ), 1.0) as segment_rate,
        least(greatest(
            sum(reward) over everything / greatest(sum(n_customers) over everything, 1), reward_low
        ), reward_high) as segment_reward

    from unioned
    window
        parent as (partition by release_id, segment, strategy),
        everything as (partition by release_id, segment)

),

-- a strategy is itself pulled to its segment's mean: the sum of its noisy cells is noisier than any of them
with_parents as (

    select
        release_id,
        window_start,
        window_end,
        unit_of_privacy,
        rho,
        delta,
        minimum_customers,
        shrinkage,
        reward_low,
        reward_high,
        segment,
        aggregate_bucket,
        strategy,
        n_customers,
        n_conversions,
        reward,
        sigma_customers,
        sigma_conversions,
        sigma_reward,
        n_customers < minimum_customers as is_suppressed,
        greatest(n_customers, 1) as n_divided_by,
        {{ shrunk(
            'parent_conversions', 'parent_customers', 'segment_rate',
            'parent_conversions_noise + segment_rate * segment_rate * parent_customers_noise',
            largest_spread('segment_rate')
        ) }} as parent_rate,
        {{ shrunk(
            'parent_reward_sum', 'parent_customers', 'segment_reward',
            'parent_reward_noise + segment_reward * segment_reward * parent_customers_noise',
            largest_spread('segment_reward', 'reward_low', 'reward_high')
        ) }} as parent_reward

    from summed

)

select * from with_parents
