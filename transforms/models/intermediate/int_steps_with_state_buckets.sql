with

steps as (

    select * from {{ ref('int_turns_with_actions') }}
    where strategy is not null

),

turns as (

    select * from {{ ref('int_turns_numbered') }}

),

dialogues as (

    select
        dialogue_id,
        min_by(segment, turn_index) filter (where segment is not null) as segment,
        max(n_customer_turns_so_far) as n_customer_turns

    from turns
    group by dialogue_id

),

ordered as (

    select
        steps.*,
        dialogues.segment,
        steps.last_customer_act as customer_act,
        cast(row_number() over by_turn - 1 as integer) as step_index,
        lag(steps.strategy) over by_turn as previous_strategy,
        lead(steps.turn_index) over by_turn is null as is_last_step,
        coalesce(lead(steps.n_customer_turns_so_far) over by_turn, dialogues.n_customer_turns)
        > steps.n_customer_turns_so_far as is_answered

    from steps
    inner join dialogues on steps.dialogue_id = dialogues.dialogue_id
    window by_turn as (partition by steps.dialogue_id order by steps.turn_index)

),

bucketed as (

    select
        *,
        {{ turn_band('step_index + 1', var('state_bucket_turns')) }}
        || '|' || coalesce(previous_strategy, 'start')
        || '|' || coalesce(segment, 'any')
        || '|' || coalesce(customer_act, 'none') as state_bucket

    from ordered

)

select * from bucketed
