-- The overall tables are sums of the segments' noisy cells, not a second draw. Where segments are not told apart there
-- is only the overall table.

with

totals as (

    select
        release_id,
        'steps' as measure,
        sum(case when segment = 'all' then n_steps else 0 end) as overall,
        sum(case when segment <> 'all' then n_steps else 0 end) as by_segment,
        count(case when segment <> 'all' then 1 end) as n_cells

    from {{ ref('agg_transitions') }}
    group by release_id

    union all

    select
        release_id,
        'customers' as measure,
        sum(case when segment = 'all' then n_customers else 0 end) as overall,
        sum(case when segment <> 'all' then n_customers else 0 end) as by_segment,
        count(case when segment <> 'all' then 1 end) as n_cells

    from {{ ref('agg_conversion_rates') }}
    group by release_id

    union all

    select
        release_id,
        'replies' as measure,
        sum(case when segment = 'all' then n_customers else 0 end) as overall,
        sum(case when segment <> 'all' then n_customers else 0 end) as by_segment,
        count(case when segment <> 'all' then 1 end) as n_cells

    from {{ ref('agg_frequent_replies') }}
    where reply_kind = 'act'
    group by release_id

)

select * from totals
where n_cells > 0 and overall <> by_segment
