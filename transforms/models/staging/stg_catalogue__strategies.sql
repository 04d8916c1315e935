with

source as (

    select * from {{ source('catalogue', 'strategies') }}

),

renamed as (

    select

        ---------- ids
        cast(strategy_id as integer) as strategy_id,

        ---------- text
        strategy,
        description,
        role,

        ---------- numbers (the lowest wins)
        cast(priority as integer) as priority,

        ---------- booleans
        role in ('selectable', 'fallback') as is_selectable

    from source

)

select * from renamed
