with

source as (

    select * from {{ source('landing', 'incomplete') }}

),

renamed as (

    select

        ---------- ids
        dialogue_id,

        ---------- text
        reason,

        ---------- arrival
        cast(arrival_day as date) as arrival_day,
        source,
        source_row

    from source

)

select * from renamed
