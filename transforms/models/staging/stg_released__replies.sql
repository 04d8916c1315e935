with

source as (

    select * from {{ source('released', 'replies') }}

),

renamed as (

    select

        ---------- ids
        release_id,
        reply_kind,
        aggregate_bucket,
        reply,

        ---------- text
        unit_of_privacy,

        ---------- numbers (noisy)
        cast(n_customers as bigint) as n_customers,
        cast(sigma as double) as sigma,
        cast(tau as double) as tau,

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
