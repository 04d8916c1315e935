with

turns as (

    select * from {{ ref('stg_dialogues__turns') }}

),

days as (

    select * from {{ ref('int_dialogue_days') }}
    where {{ is_day_to_rebuild('dialogue_day') }}

),

arrivals as (

    select
        turns.dialogue_id,
        turns.turn_index,
        turns.occurred_at,
        turns.speaker,
        turns.content_hash,
        turns.customer_id,
        turns.segment,
        turns.channel,
        turns.locale,
        turns.strategies,
        turns.eligible_strategies,
        turns.propensity,
        turns.policy_version,
        turns.item_ids,
        turns.candidate_item_ids,
        turns.item_propensity,
        turns.is_synthetic,
        days.dialogue_day,
        row_number() over (
            partition by turns.dialogue_id, turns.turn_index
            order by turns.arrival_day desc, turns.source desc, turns.source_row desc
        ) as recency

    from turns
    inner join days on turns.dialogue_id = days.dialogue_id

),

last_arrivals as (

    select * from arrivals
    where recency = 1

),

numbered as (

    select
        dialogue_id,
        turn_index,
        occurred_at,
        speaker,
        content_hash,
        customer_id,
        segment,
        channel,
        locale,
        strategies,
        eligible_strategies,
        propensity,
        policy_version,
        item_ids,
        candidate_item_ids,
        item_propensity,
        is_synthetic,
        cast(row_number() over so_far as integer) as turn_number,
        cast(count(case when speaker = 'customer' then 1 end) over so_far as integer) as n_customer_turns_so_far,
        dialogue_day

    from last_arrivals
    window so_far as (
        partition by dialogue_id order by turn_index rows between unbounded preceding and current row
    )

)

select * from numbered
