-- Steps that may enter the exact tables. How many of a customer's rows do is for each table to bound.

with

dialogues as (

    select
        dialogue_id,
        customer_id,
        has_conversion

    from {{ ref('fct_dialogues') }}
    where
        {{ is_in_window('dialogue_day') }}
        and is_usable
        and has_one_customer
        and not {{ is_held_out('customer_id') }}

),

transitions as (

    select * from {{ ref('fct_transitions') }}
    where {{ is_in_window('dialogue_day') }}

),

replies as (

    select * from {{ ref('int_steps_answered') }}
    where {{ is_in_window('dialogue_day') }}

),

bucketed as (

    select
        dialogues.customer_id,
        transitions.dialogue_id,
        transitions.step_index,
        {{ aggregate_bucket(
            'transitions.step_index + 1',
            'transitions.previous_strategy',
            'transitions.segment',
            'transitions.customer_act'
        ) }} as aggregate_bucket,
        transitions.strategy,
        dialogues.has_conversion as is_converted,
        {{ bounded_milli('transitions.reward') }} as reward_milli

    from transitions
    inner join dialogues on transitions.dialogue_id = dialogues.dialogue_id

),

followed as (

    select
        *,
        coalesce(
            lead(aggregate_bucket) over (partition by dialogue_id order by step_index),
            case when is_converted then 'converted' else 'ended' end
        ) as next_bucket

    from bucketed

),

answered as (

    select
        followed.customer_id,
        followed.dialogue_id,
        followed.step_index,
        followed.aggregate_bucket,
        followed.strategy,
        followed.next_bucket,
        followed.is_converted,
        followed.reward_milli,
        replies.reply_act,
        replies.reply_text

    from followed
    left join replies
        on followed.dialogue_id = replies.dialogue_id and followed.step_index = replies.step_index

)

select * from answered
