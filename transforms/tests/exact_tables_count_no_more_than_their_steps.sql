-- Bounding takes away and never adds: no exact table counts more than the bounded steps hold.

with

steps as (

    select
        count(*) as n_steps,
        count(distinct customer_id) as n_customers,
        count(reply_act) + count(reply_text) as n_replies

    from {{ ref('int_bounded_steps') }}

),

transitions as (

    select coalesce(sum(n_steps), 0) as n_steps from {{ ref('exact_transitions') }}

),

cells as (

    select
        coalesce(sum(n_customers), 0) as n_rows,
        coalesce(max(n_customers), 0) as largest_cell

    from {{ ref('exact_cells') }}

),

replies as (

    select coalesce(sum(n_customers), 0) as n_replies from {{ ref('exact_replies') }}

)

select
    steps.n_steps,
    transitions.n_steps as n_transitions,
    cells.n_rows,
    replies.n_replies

from steps
cross join transitions
cross join cells
cross join replies
where
    transitions.n_steps > steps.n_steps
    or transitions.n_steps
    > steps.n_customers * {{ var('privacy_max_cells') }} * {{ var('privacy_max_rows_per_cell') }}
    or cells.n_rows > steps.n_steps
    or cells.n_rows > steps.n_customers * {{ var('privacy_max_cells') }}
    or cells.largest_cell > steps.n_customers
    or replies.n_replies > steps.n_replies
