with

turns as (

    select * from {{ ref('stg_dialogues__turns') }}
    where {{ is_arrival_to_read('arrival_day') }}

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
        case when turns.speaker = 'customer' then coalesce(turns.customer_act, 'other') end as customer_act,
        -- '' for a reply without a canonical form, so that the next reply is not taken for it
        case when turns.speaker = 'customer' then coalesce(turns.canonical_reply, '') end as canonical_reply,
        turns.is_synthetic,
        days.has_one_customer,
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
        customer_act,
        is_synthetic,
        has_one_customer,
        cast(row_number() over so_far as integer) as turn_number,
        cast(count(case when speaker = 'customer' then 1 end) over so_far as integer) as n_customer_turns_so_far,
        {{ last_known('customer_act') }} over so_far as last_customer_act,
        {{ first_known('customer_act') }} over from_here as next_customer_act,
        nullif({{ first_known('canonical_reply') }} over from_here, '') as next_canonical_reply,
        dialogue_day

    from last_arrivals
    window
        so_far as (
            partition by dialogue_id order by turn_index rows between unbounded preceding and current row
        ),
        from_here as (
            partition by dialogue_id order by turn_index rows between current row and unbounded following
        )

)

select * from numbered
