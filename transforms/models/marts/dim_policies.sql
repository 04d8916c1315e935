with

transitions as (

    select * from {{ ref('fct_transitions') }}
    where policy_version is not null

),

summed as (

    select
        policy_version,
        min(dialogue_day) as first_dialogue_day,
        max(dialogue_day) as last_dialogue_day,
        cast(count(distinct dialogue_id) as bigint) as n_dialogues,
        cast(count(*) as bigint) as n_steps,
        cast(count(propensity) as bigint) as n_steps_with_propensity

    from transitions
    group by policy_version

)

select * from summed
