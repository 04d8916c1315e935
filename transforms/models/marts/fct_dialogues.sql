{{ rewritten_by_day() }}

with

dialogues as (

    select * from {{ ref('int_dialogues_with_outcomes') }}

),

agent_turns as (

    select * from {{ ref('int_turns_with_actions') }}

),

steps as (

    select * from {{ ref('int_steps_with_state_buckets') }}

),

counted_steps as (

    select
        dialogue_id,
        count(*) as n_steps,
        count(case when is_answered then 1 end) as n_answered_steps

    from steps
    group by dialogue_id

),

counted_unlabelled as (

    select
        dialogue_id,
        count(*) as n_unlabelled_steps

    from agent_turns
    where is_unlabelled
    group by dialogue_id

),

counted as (

    select
        dialogues.*,
        cast(coalesce(counted_steps.n_steps, 0) as integer) as n_steps,
        cast(coalesce(counted_steps.n_answered_steps, 0) as integer) as n_answered_steps,
        cast(coalesce(counted_unlabelled.n_unlabelled_steps, 0) as integer) as n_unlabelled_steps

    from dialogues
    left join counted_steps on dialogues.dialogue_id = counted_steps.dialogue_id
    left join counted_unlabelled on dialogues.dialogue_id = counted_unlabelled.dialogue_id

),

judged as (

    select

        ---------- ids
        dialogue_id,
        customer_id,

        ---------- text
        segment,
        channel,
        locale,

        ---------- times
        started_at,
        last_turn_at,

        ---------- numbers
        n_turns,
        n_steps,
        n_unlabelled_steps,
        n_outcomes,
        n_late_outcomes,
        has_conversion,
        conversion_value,
        -- from the dialogue's own sums, not from fct_transitions: a test holds the two against each other
        case
            when n_steps > 0
                then {{ weighted_reward(
                    'clipped_conversion_value',
                    'case when has_conversion then 1.0 else 0.0 end',
                    'clipped_rating',
                    'n_answered_steps',
                    '(-n_steps)'
                ) }}
        end as episode_return,

        ---------- booleans
        is_mature,
        is_incomplete,
        is_synthetic,
        has_one_customer,
        is_mature and not is_incomplete and n_steps > 0 and n_unlabelled_steps = 0 as is_usable,

        ---------- partition
        dialogue_day

    from counted
    where {{ is_day_to_rebuild('dialogue_day') }}

)

select * from judged
