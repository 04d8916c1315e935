-- The overall tables hold every noisy figure of the release, each once: no join drops a cell or doubles it.

with

released as (

    select
        release_id,
        'steps' as measure,
        sum(n_steps) as total

    from {{ ref('stg_released__transitions') }}
    group by release_id

    union all

    select
        release_id,
        'customers' as measure,
        sum(n_customers) as total

    from {{ ref('stg_released__cells') }}
    group by release_id

    union all

    select
        release_id,
        'replies' as measure,
        sum(n_customers) as total

    from {{ ref('stg_released__replies') }}
    group by release_id

),

modelled as (

    select
        release_id,
        'steps' as measure,
        sum(n_steps) as total

    from {{ ref('agg_transitions') }}
    where segment = 'all'
    group by release_id

    union all

    select
        release_id,
        'customers' as measure,
        sum(n_customers) as total

    from {{ ref('agg_rewards') }}
    where segment = 'all'
    group by release_id

    union all

    select
        release_id,
        'replies' as measure,
        sum(n_customers) as total

    from {{ ref('agg_frequent_replies') }}
    where segment = 'all'
    group by release_id

)

select
    released.release_id,
    released.measure,
    released.total,
    modelled.total as total_of_the_models

from released
left join modelled on released.release_id = modelled.release_id and released.measure = modelled.measure
where coalesce(released.total <> modelled.total, true)
