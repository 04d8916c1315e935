with

strategies as (

    select * from {{ ref('stg_catalogue__strategies') }}

),

ordered as (

    select
        strategy_id,
        strategy,
        description,
        priority,
        role,
        is_selectable

    from strategies

)

select * from ordered
