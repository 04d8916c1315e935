-- Thin columns of the landing, so that everything after it can start from the days of this build.

with

turns as (

    select * from {{ ref('stg_dialogues__turns') }}
    where {{ is_arrival_to_read('arrival_day') }}

),

first_turns as (

    select
        dialogue_id,
        -- of the turn of lowest index in its last arrival; an aggregate, for a window takes 1.4 times the CPU
        cast(max_by(occurred_at, (-turn_index, arrival_day, source, source_row)) as date) as dialogue_day,
        -- over all arrivals: a customer whose turn was sent again under another name is still in this dialogue
        coalesce(min(customer_id) = max(customer_id), false) as has_one_customer

    from turns
    group by dialogue_id

)

select * from first_turns
where {{ is_day_to_rebuild('dialogue_day') }}
