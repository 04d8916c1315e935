with

source as (

    select * from {{ source('landing', 'decisions') }}

),

renamed as (

    select

        ---------- ids
        decision_id,
        dialogue_id,
        customer_id,
        item_id,

        ---------- text
        segment,
        policy_version,
        stage,
        strategy,
        eligible_strategies,

        ---------- numbers
        cast(turn_index as integer) as turn_index,
        cast(probability as double) as propensity,
        cast(item_probability as double) as item_propensity,

        ---------- times (UTC)
        cast(occurred_at as timestamp) as occurred_at,

        ---------- arrival
        cast(arrival_day as date) as arrival_day,
        source,
        source_row

    from source

)

select * from renamed
