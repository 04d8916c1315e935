with

turns as (

    select * from {{ ref('int_turns_numbered') }}

),

outcomes as (

    select * from {{ ref('int_outcomes_attributed_to_dialogues') }}

),

arrival_days as (

    select arrival_day from {{ ref('stg_dialogues__turns') }}
    union all
    select arrival_day from {{ ref('stg_dialogues__outcomes') }}
    union all
    select arrival_day from {{ ref('stg_dialogues__incompletes') }}

),

clock as (

    select coalesce({{ given_clock() }}, cast(max(arrival_day) as timestamp) + interval 1 day) as as_of
    from arrival_days

),

incomplete_dialogues as (

    select distinct dialogue_id from {{ ref('stg_dialogues__incompletes') }}

),

summed_turns as (

    select
        dialogue_id,
        min_by(customer_id, turn_index) filter (where customer_id is not null) as customer_id,
        min_by(segment, turn_index) filter (where segment is not null) as segment,
        min_by(channel, turn_index) filter (where channel is not null) as channel,
        min_by(locale, turn_index) filter (where locale is not null) as locale,
        min_by(occurred_at, turn_index) as started_at,
        max(occurred_at) as last_turn_at,
        count(*) as n_turns,
        max(case when is_synthetic then 1 else 0 end) = 1 as is_synthetic,
        max(case when has_one_customer then 1 else 0 end) = 1 as has_one_customer,
        min(dialogue_day) as dialogue_day

    from turns
    group by dialogue_id

),

summed_outcomes as (

    select
        dialogue_id,
        count(*) as n_outcomes,
        count(case when not is_attributed then 1 end) as n_late_outcomes,
        count(case when is_attributed and kind = 'conversion' then 1 end) as n_conversions,
        sum(case when is_attributed and kind = 'conversion' then value end) as conversion_value,
        max_by(value, occurred_at) filter (where is_attributed and kind = 'rating' and value is not null) as rating

    from outcomes
    group by dialogue_id

),

joined as (

    select
        summed_turns.dialogue_id,
        -- a customer the log does not name is a customer of one dialogue
        coalesce(summed_turns.customer_id, summed_turns.dialogue_id) as customer_id,
        summed_turns.segment,
        summed_turns.channel,
        summed_turns.locale,
        summed_turns.started_at,
        summed_turns.last_turn_at,
        cast(summed_turns.n_turns as integer) as n_turns,
        cast(coalesce(summed_outcomes.n_outcomes, 0) as integer) as n_outcomes,
        cast(coalesce(summed_outcomes.n_late_outcomes, 0) as integer) as n_late_outcomes,
        coalesce(summed_outcomes.n_conversions, 0) > 0 as has_conversion,
        coalesce(summed_outcomes.conversion_value, 0.0) as conversion_value,
        coalesce(
            {{ clipped('summed_outcomes.conversion_value', 'conversion_value') }}, 0.0
        ) as clipped_conversion_value,
        coalesce({{ clipped('summed_outcomes.rating', 'rating') }}, 0.0) as clipped_rating,
        coalesce(
            summed_turns.last_turn_at + interval {{ var('attribution_days') }} day <= clock.as_of, false
        ) as is_mature,
        incomplete_dialogues.dialogue_id is not null as is_incomplete,
        summed_turns.is_synthetic,
        summed_turns.has_one_customer,
        summed_turns.dialogue_day

    from summed_turns
    cross join clock
    left join summed_outcomes on summed_turns.dialogue_id = summed_outcomes.dialogue_id
    left join incomplete_dialogues on summed_turns.dialogue_id = incomplete_dialogues.dialogue_id

)

select * from joined
