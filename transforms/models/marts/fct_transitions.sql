{{ rewritten_by_day() }}

with

steps as (

    select * from {{ ref('int_steps_with_state_buckets') }}

),

dialogues as (

    select * from {{ ref('int_dialogues_with_outcomes') }}

),

rewarded as (

    select
        steps.*,
        dialogues.customer_id,
        dialogues.channel,
        dialogues.locale,
        dialogues.is_mature,
        case when steps.is_last_step then dialogues.clipped_conversion_value else 0.0 end as reward_conversion_value,
        case when steps.is_last_step and dialogues.has_conversion then 1.0 else 0.0 end as reward_conversion,
        case when steps.is_last_step then dialogues.clipped_rating else 0.0 end as reward_rating,
        case when steps.is_answered then 1.0 else 0.0 end as reward_engagement,
        -1.0 as reward_cost

    from steps
    inner join dialogues on steps.dialogue_id = dialogues.dialogue_id

),

transitions as (

    select

        ---------- ids
        dialogue_id,
        step_index,
        turn_index,
        occurred_at,
        customer_id,

        ---------- what was known
        segment,
        channel,
        locale,

        ---------- what was done
        strategy,
        strategy_id,
        eligible_strategies,
        propensity,
        policy_version,
        item_id,
        candidate_item_ids,
        item_propensity,
        stage,

        ---------- where it was done
        previous_strategy,
        customer_act,
        state_bucket,

        ---------- what it brought (parts clipped, not weighted)
        cast(reward_conversion_value as double) as reward_conversion_value,
        cast(reward_conversion as double) as reward_conversion,
        cast(reward_rating as double) as reward_rating,
        cast(reward_engagement as double) as reward_engagement,
        cast(reward_cost as double) as reward_cost,
        {{ weighted_reward(
            'reward_conversion_value', 'reward_conversion', 'reward_rating', 'reward_engagement', 'reward_cost'
        ) }} as reward,

        ---------- where the episode ends
        is_last_step,
        is_last_step and is_mature as is_terminated,
        is_last_step and not is_mature as is_truncated,

        ---------- partition
        dialogue_day

    from rewarded
    where {{ is_day_to_rebuild('dialogue_day') }}

)

select * from transitions
