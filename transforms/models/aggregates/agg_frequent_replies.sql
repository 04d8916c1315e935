with

replies as (

    select
        *,
        {{ segment_of('aggregate_bucket') }} as segment,
        {{ bucket_of_all_segments('aggregate_bucket') }} as overall_aggregate_bucket

    from {{ ref('stg_released__replies') }}

),

unioned as (

    {{ by_segment_and_all(
        'replies',
        keys=['reply_kind', 'reply', 'tau'],
        merged=['aggregate_bucket'],
        sums={'n_customers': 'bigint'},
        sigmas=['sigma']
    ) }}

),

nonnegative as (

    {{ without_negatives(
        'unioned', 'n_customers', ['release_id', 'segment', 'reply_kind', 'aggregate_bucket'], 'reply'
    ) | indent(4) }}

),

with_priors as (

    select
        *,
        n_customers < minimum_customers as is_suppressed,
        sum(kept) over of_cell as n_kept,
        sum(sigma * sigma) over of_cell as variance_of_cell,
        sum(kept) over of_parent_reply as n_kept_parent,
        row_number() over (
            partition by release_id, segment, reply_kind, aggregate_bucket order by n_customers desc, reply asc
        ) as position

    from nonnegative
    window
        of_cell as (partition by release_id, segment, reply_kind, aggregate_bucket),
        of_parent_reply as (partition by release_id, segment, reply_kind, reply)

),

estimated as (

    select
        *,
        case when n_kept > 0 then kept / n_kept else 0.0 end as own_share,
        case
            when n_kept + shrinkage > 0
                then (
                    kept + shrinkage * coalesce(n_kept_parent / nullif(sum(n_kept_parent) over of_cell, 0), 0.0)
                ) / (n_kept + shrinkage)
        end as shrunk_share

    from with_priors
    window of_cell as (partition by release_id, segment, reply_kind, aggregate_bucket)

),

with_bars as (

    select
        *,
        {{ half_width_of_share('own_share', 'n_kept', 'sigma', 'variance_of_cell') }} as half_width

    from estimated

),

published as (

    select
        release_id,
        window_start,
        window_end,
        unit_of_privacy,
        sigma,
        tau,
        rho,
        delta,
        minimum_customers,
        segment,
        reply_kind,
        aggregate_bucket,
        reply,
        cast(position as integer) as position,
        n_customers,
        {{ estimate_with_bar('share', 'shrunk_share', 'own_share') }},
        is_suppressed

    from with_bars

)

select * from published
