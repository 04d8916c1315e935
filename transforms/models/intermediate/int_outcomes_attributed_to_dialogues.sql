with

turns as (

    select * from {{ ref('int_turns_numbered') }}

),

dialogues as (

    select
        dialogue_id,
        max(occurred_at) as last_turn_at,
        min(dialogue_day) as dialogue_day

    from turns
    group by dialogue_id

),

ranked_outcomes as (

    select
        *,
        row_number() over (
            partition by dialogue_id, kind, occurred_at
            order by arrival_day desc, source desc, source_row desc
        ) as recency

    from {{ ref('stg_dialogues__outcomes') }}
    where dialogue_id in (select dialogues.dialogue_id from dialogues)

),

attributed as (

    select
        outcomes.dialogue_id,
        outcomes.kind,
        outcomes.occurred_at,
        outcomes.value,
        outcomes.occurred_at
        <= dialogues.last_turn_at + interval {{ var('attribution_days') }} day as is_attributed,
        dialogues.dialogue_day

    from ranked_outcomes as outcomes
    inner join dialogues on outcomes.dialogue_id = dialogues.dialogue_id
    where outcomes.recency = 1

)

select * from attributed
