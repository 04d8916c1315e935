-- Exact, so restricted: noise is added outside SQL. One customer moves at most `privacy_max_cells` cells, each by at
-- most `privacy_max_rows_per_cell`.

with

steps as (

    select * from {{ ref('int_bounded_steps') }}

),

customer_cells as (

    select
        customer_id,
        aggregate_bucket,
        strategy,
        next_bucket,
        least(count(*), {{ var('privacy_max_rows_per_cell') }}) as n_steps

    from steps
    group by customer_id, aggregate_bucket, strategy, next_bucket

),

ranked as (

    select
        *,
        row_number() over (
            partition by customer_id
            order by {{ salted_hash(['customer_id', 'aggregate_bucket', 'strategy', 'next_bucket']) }}
        ) as position

    from customer_cells

),

summed as (

    select
        aggregate_bucket,
        strategy,
        next_bucket,
        cast(sum(n_steps) as bigint) as n_steps

    from ranked
    where position <= {{ var('privacy_max_cells') }}
    group by aggregate_bucket, strategy, next_bucket

)

select * from summed
