-- Thin columns of the whole landing, so that everything after it can start from the days of this build.

with

turns as (

    select * from {{ ref('stg_dialogues__turns') }}

),

ranked as (

    select
        dialogue_id,
        cast(occurred_at as date) as dialogue_day,
        row_number() over (
            partition by dialogue_id
            order by turn_index asc, arrival_day desc, source desc, source_row desc
        ) as position

    from turns

),

first_turns as (

    select
        dialogue_id,
        dialogue_day

    from ranked
    where position = 1

)

select * from first_turns
