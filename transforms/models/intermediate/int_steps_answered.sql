{{ rewritten_by_day() }}

-- All days, unlike the other intermediate models: the private aggregates of a window need the replies of all of it.

with

steps as (

    select * from {{ ref('int_steps_with_state_buckets') }}
    where is_answered

),

replies as (

    select
        dialogue_id,
        step_index,
        next_customer_act as reply_act,
        next_canonical_reply as reply_text,
        dialogue_day

    from steps
    where {{ is_day_to_rebuild('dialogue_day') }}

)

select * from replies
