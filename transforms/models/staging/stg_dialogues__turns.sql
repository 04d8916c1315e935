with

source as (

    select * from {{ source('landing', 'turns') }}

),

renamed as (

    select

        ---------- ids
        dialogue_id,
        customer_id,
        content_hash,

        ---------- text
        text,
        speaker,
        segment,
        channel,
        locale,
        customer_act,
        canonical_reply,
        strategies,
        eligible_strategies,
        policy_version,
        item_ids,
        candidate_item_ids,

        ---------- numbers
        cast(turn_index as integer) as turn_index,
        cast(propensity as double) as propensity,
        cast(item_propensity as double) as item_propensity,

        ---------- booleans
        is_synthetic,

        ---------- times (UTC, uncut: the order of steps depends on them)
        cast(occurred_at as timestamp) as occurred_at,

        ---------- arrival
        cast(arrival_day as date) as arrival_day,
        source,
        source_row

    from source

)

select * from renamed
