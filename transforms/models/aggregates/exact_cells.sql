-- Exact, so restricted: noise is added outside SQL. One customer moves at most `privacy_max_cells` cells, each by one
-- row of its own: one customer, at most one conversion, one reward within its bounds.

with

steps as (

    select
        *,
        {{ salted_hash(['customer_id', 'dialogue_id', 'cast(step_index as string)']) }} as salted_hash

    from {{ ref('int_bounded_steps') }}

),

customer_cells as (

    select
        customer_id,
        aggregate_bucket,
        strategy,
        min_by(is_converted, salted_hash) as is_converted,
        min_by(reward_milli, salted_hash) as reward_milli

    from steps
    group by customer_id, aggregate_bucket, strategy

),

ranked as (

    select
        *,
        row_number() over (
            partition by customer_id
            order by {{ salted_hash(['customer_id', 'aggregate_bucket', 'strategy']) }}
        ) as position

    from customer_cells

),

summed as (

    select
        aggregate_bucket,
        strategy,
        cast(count(*) as bigint) as n_customers,
        cast(count(case when is_converted then 1 end) as bigint) as n_conversions,
        cast(sum(reward_milli) as bigint) as reward_milli

    from ranked
    where position <= {{ var('privacy_max_cells') }}
    group by aggregate_bucket, strategy

)

select * from summed
