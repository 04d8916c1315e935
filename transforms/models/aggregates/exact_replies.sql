-- Exact, so restricted: noise is added outside SQL. One customer moves at most `privacy_max_cells` cells of each kind,
-- each by one.

with

steps as (

    select * from {{ ref('int_bounded_steps') }}

),

said as (

    select
        customer_id,
        'act' as reply_kind,
        aggregate_bucket,
        reply_act as reply

    from steps
    where reply_act is not null

    union all

    select
        customer_id,
        'text' as reply_kind,
        'any|any|any|any' as aggregate_bucket,
        reply_text as reply

    from steps
    where reply_text is not null

),

customer_cells as (

    select distinct
        customer_id,
        reply_kind,
        aggregate_bucket,
        reply

    from said

),

ranked as (

    select
        *,
        row_number() over (
            partition by customer_id, reply_kind
            order by {{ salted_hash(['customer_id', 'reply_kind', 'aggregate_bucket', 'reply']) }}
        ) as position

    from customer_cells

),

summed as (

    select
        reply_kind,
        aggregate_bucket,
        reply,
        cast(count(*) as bigint) as n_customers

    from ranked
    where position <= {{ var('privacy_max_cells') }}
    group by reply_kind, aggregate_bucket, reply

)

select * from summed
