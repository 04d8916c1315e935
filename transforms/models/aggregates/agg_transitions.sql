with

transitions as (

    select
        *,
        {{ segment_of('aggregate_bucket') }} as segment,
        {{ bucket_of_all_segments('aggregate_bucket') }} as overall_aggregate_bucket,
        case
            when next_bucket in ('converted', 'ended') then next_bucket
            else {{ bucket_of_all_segments('next_bucket') }}
        end as overall_next_bucket

    from {{ ref('stg_released__transitions') }}

),

cells as (

    select * from {{ ref('int_released_cells_by_segment') }}

),

unioned as (

    {{ by_segment_and_all(
        'transitions',
        keys=['strategy'],
        merged=['aggregate_bucket', 'next_bucket'],
        sums={'n_steps': 'bigint'},
        sigmas=['sigma_steps']
    ) }}

),

nonnegative as (

    {{ without_negatives(
        'unioned', 'n_steps', ['release_id', 'segment', 'aggregate_bucket', 'strategy'], 'next_bucket'
    ) | indent(4) }}

),

parents as (

    select
        release_id,
        segment,
        strategy,
        next_bucket,
        cast(sum(n_steps) as bigint) as n_steps

    from unioned
    group by release_id, segment, strategy, next_bucket

),

nonnegative_parents as (

    {{ without_negatives('parents', 'n_steps', ['release_id', 'segment', 'strategy'], 'next_bucket') | indent(4) }}

),

-- of the parent, only what can follow this cell
with_priors as (

    select
        nonnegative.*,
        cells.n_customers,
        cells.is_suppressed,
        sum(nonnegative.kept) over of_cell as n_kept,
        sum(nonnegative.sigma_steps * nonnegative.sigma_steps) over of_cell as variance_of_cell,
        coalesce(
            nonnegative_parents.kept / nullif(sum(nonnegative_parents.kept) over of_cell, 0),
            1.0 / count(*) over of_cell
        ) as parent_share

    from nonnegative
    inner join nonnegative_parents
        on
            nonnegative.release_id = nonnegative_parents.release_id
            and nonnegative.segment = nonnegative_parents.segment
            and nonnegative.strategy = nonnegative_parents.strategy
            and nonnegative.next_bucket = nonnegative_parents.next_bucket
    inner join cells
        on
            nonnegative.release_id = cells.release_id
            and nonnegative.segment = cells.segment
            and nonnegative.aggregate_bucket = cells.aggregate_bucket
            and nonnegative.strategy = cells.strategy
    window of_cell as (
        partition by
            nonnegative.release_id, nonnegative.segment, nonnegative.aggregate_bucket, nonnegative.strategy
    )

),

estimated as (

    select
        *,
        case when n_kept > 0 then kept / n_kept else parent_share end as own_share,
        case
            when n_kept + shrinkage > 0 then (kept + shrinkage * parent_share) / (n_kept + shrinkage)
            else parent_share
        end as shrunk_share

    from with_priors

),

with_bars as (

    select
        *,
        {{ half_width_of_share('own_share', 'n_kept', 'sigma_steps', 'variance_of_cell') }} as half_width

    from estimated

),

published as (

    select
        release_id,
        window_start,
        window_end,
        unit_of_privacy,
        sigma_steps as sigma,
        cast(null as double) as tau,
        rho,
        delta,
        minimum_customers,
        segment,
        aggregate_bucket,
        strategy,
        next_bucket,
        n_steps,
        n_customers,
        {{ estimate_with_bar('probability', 'shrunk_share', 'own_share') }},
        is_suppressed

    from with_bars

)

select * from published
