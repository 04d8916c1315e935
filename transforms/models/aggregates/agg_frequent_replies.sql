with

replies as (

    select
        *,
        {{ segment_of('aggregate_bucket') }} as segment,
        {{ bucket_of_all_segments('aggregate_bucket') }} as overall_bucket

    from {{ ref('stg_released__replies') }}

),

-- the noise of a sum of cells is the root of the sum of their variances
overall as (

    select
        release_id,
        window_start,
        window_end,
        unit_of_privacy,
        rho,
        delta,
        minimum_customers,
        shrinkage,
        'all' as segment,
        reply_kind,
        overall_bucket as aggregate_bucket,
        reply,
        cast(sum(n_customers) as bigint) as n_customers,
        sqrt(sum(sigma * sigma)) as sigma,
        max(tau) as tau

    from replies
    group by
        release_id, window_start, window_end, unit_of_privacy, rho, delta, minimum_customers, shrinkage, reply_kind,
        overall_bucket, reply

),

unioned as (

    select * from overall

    union all

    select
        release_id,
        window_start,
        window_end,
        unit_of_privacy,
        rho,
        delta,
        minimum_customers,
        shrinkage,
        segment,
        reply_kind,
        aggregate_bucket,
        reply,
        n_customers,
        sigma,
        tau

    from replies
    where segment <> 'any'

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

-- sampling and noise of the cell itself: shrinkage moves the estimate and never narrows its bar
with_bars as (

    select
        *,
        1.96 * sqrt(
            own_share * (1 - own_share) * n_kept
            + sigma * sigma * (1 - own_share)
            + own_share * own_share * variance_of_cell
        ) / greatest(n_kept, 1.0) as half_width

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
        case when not is_suppressed then shrunk_share end as share,
        case when not is_suppressed then greatest(least(own_share - half_width, shrunk_share), 0.0) end as low,
        case when not is_suppressed then least(greatest(own_share + half_width, shrunk_share), 1.0) end as high,
        is_suppressed

    from with_bars

)

select * from published
