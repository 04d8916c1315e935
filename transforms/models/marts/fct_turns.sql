{{ rewritten_by_day() }}

with

turns as (

    select * from {{ ref('int_turns_numbered') }}

),

without_text as (

    select
        dialogue_id,
        turn_index,
        speaker,
        content_hash,
        customer_act,
        occurred_at,
        dialogue_day

    from turns
    where {{ is_day_to_rebuild('dialogue_day') }}

)

select * from without_text
