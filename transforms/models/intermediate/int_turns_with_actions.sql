with

agent_turns as (

    select * from {{ ref('int_turns_numbered') }}
    where speaker = 'agent'

),

strategies as (

    select * from {{ ref('stg_catalogue__strategies') }}

),

ranked_decisions as (

    select
        *,
        row_number() over (
            partition by dialogue_id, turn_index
            order by arrival_day desc, source desc, source_row desc
        ) as recency

    from {{ ref('stg_decisions__decisions') }}
    where
        (stage is null or stage <> 'shadow')
        and dialogue_id in (select agent_turns.dialogue_id from agent_turns)

),

decisions as (

    select * from ranked_decisions
    where recency = 1

),

decided as (

    select
        agent_turns.dialogue_id,
        agent_turns.turn_index,
        agent_turns.occurred_at,
        agent_turns.n_customer_turns_so_far,
        agent_turns.last_customer_act,
        agent_turns.next_customer_act,
        agent_turns.next_canonical_reply,
        agent_turns.candidate_item_ids,
        agent_turns.dialogue_day,
        decisions.stage,
        case
            when decisions.decision_id is null then agent_turns.strategies
            else {{ list_of_one('decisions.strategy') }}
        end as labels,
        case
            when decisions.decision_id is null then agent_turns.eligible_strategies
            else decisions.eligible_strategies
        end as eligible_strategies,
        case
            when decisions.decision_id is null then agent_turns.propensity
            else decisions.propensity
        end as propensity,
        case
            when decisions.decision_id is null then agent_turns.policy_version
            else decisions.policy_version
        end as policy_version,
        case
            when decisions.decision_id is null then {{ first_of('agent_turns.item_ids') }}
            else decisions.item_id
        end as item_id,
        case
            when decisions.decision_id is null then agent_turns.item_propensity
            else decisions.item_propensity
        end as item_propensity

    from agent_turns
    left join decisions
        on agent_turns.dialogue_id = decisions.dialogue_id and agent_turns.turn_index = decisions.turn_index

),

labels as (

    select
        decided.dialogue_id,
        decided.turn_index,
        decided.labels,
        label

    from decided
    {{ unnested('decided.labels', 'label') }}

),

known_labels as (

    select
        labels.dialogue_id,
        labels.turn_index,
        strategies.strategy,
        strategies.role,
        strategies.is_selectable,
        -- best priority first, ties to the earliest label of the turn
        cast(strategies.priority as bigint) * 10000 + array_position(labels.labels, labels.label) as preference

    from labels
    inner join strategies on labels.label = strategies.strategy

),

chosen as (

    select
        dialogue_id,
        turn_index,
        min_by(strategy, preference) filter (where is_selectable) as strategy,
        max(case when role = 'outcome' then 1 else 0 end) as n_outcome_labels

    from known_labels
    group by dialogue_id, turn_index

),

with_actions as (

    select
        decided.*,
        chosen.strategy,
        chosen.dialogue_id is null as is_unlabelled,
        sum(coalesce(chosen.n_outcome_labels, 0)) over (
            partition by decided.dialogue_id order by decided.turn_index
            rows between unbounded preceding and current row
        ) as n_outcome_labels_so_far

    from decided
    left join chosen
        on decided.dialogue_id = chosen.dialogue_id and decided.turn_index = chosen.turn_index

),

before_the_outcome as (

    select
        with_actions.dialogue_id,
        with_actions.turn_index,
        with_actions.occurred_at,
        with_actions.n_customer_turns_so_far,
        with_actions.last_customer_act,
        with_actions.next_customer_act,
        with_actions.next_canonical_reply,
        with_actions.strategy,
        strategies.strategy_id,
        with_actions.eligible_strategies,
        with_actions.propensity,
        with_actions.policy_version,
        with_actions.item_id,
        with_actions.candidate_item_ids,
        with_actions.item_propensity,
        with_actions.stage,
        with_actions.is_unlabelled,
        with_actions.dialogue_day

    from with_actions
    left join strategies on with_actions.strategy = strategies.strategy
    where with_actions.n_outcome_labels_so_far = 0

)

select * from before_the_outcome
