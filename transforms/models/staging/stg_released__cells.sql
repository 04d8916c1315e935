with

source as (

    select * from {{ source('released', 'cells') }}

),

renamed as (

    select

        ---------- ids
        release_id,
        aggregate_bucket,
        strategy,

        ---------- text
        unit_of_privacy,

        ---------- numbers (noisy)
        cast(n_customers as bigint) as n_customers,
        cast(n_conversions as bigint) as n_conversions,
        cast(reward as double) as reward,
        cast(sigma_customers as double) as sigma_customers,
        cast(sigma_conversions as double) as sigma_conversions,
        cast(sigma_reward as double) as sigma_reward,
        cast(reward_low as double) as reward_low,
        cast(reward_high as double) as reward_high,

        ---------- numbers (what they cost, and how they are read)
        cast(rho as double) as rho,
        cast(delta as double) as delta,
        cast(minimum_customers as integer) as minimum_customers,
        cast(shrinkage as double) as shrinkage,

        ---------- days (the end exclusive)
        cast(window_start as date) as window_start,
        cast(window_end as date) as window_end

    from source

)

select * from renamed
