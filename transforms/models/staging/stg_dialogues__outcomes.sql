with

source as (

    select * from {{ source('landing', 'outcomes') }}

),

renamed as (

    select

        ---------- ids
        dialogue_id,

        ---------- text
        kind,

        ---------- numbers (in the unit of the kind: currency, stars)
        cast(value as double) as value,

        ---------- booleans
        is_synthetic,

        ---------- times (UTC)
        cast(occurred_at as timestamp) as occurred_at,

        ---------- arrival
        cast(arrival_day as date) as arrival_day,
        source,
        source_row

    from source

)

select * from renamed
