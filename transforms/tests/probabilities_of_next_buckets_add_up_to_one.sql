select
    release_id,
    segment,
    aggregate_bucket,
    strategy,
    sum(probability) as total

from {{ ref('agg_transitions') }}
where not is_suppressed
group by release_id, segment, aggregate_bucket, strategy
having coalesce(abs(sum(probability) - 1) > 1e-9, true)
