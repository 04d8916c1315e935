with

steps as (

    select
        dialogue_id,
        sum(reward) as sum_of_rewards

    from {{ ref('fct_transitions') }}
    where {{ is_day_to_rebuild('dialogue_day') }}
    group by dialogue_id

),

dialogues as (

    select * from {{ ref('fct_dialogues') }}
    where {{ is_day_to_rebuild('dialogue_day') }} and n_steps > 0

)

select
    dialogues.dialogue_day,
    dialogues.episode_return,
    steps.sum_of_rewards

from dialogues
left join steps on dialogues.dialogue_id = steps.dialogue_id
where coalesce(
    abs(dialogues.episode_return - steps.sum_of_rewards) > 1e-9 * (1 + abs(dialogues.episode_return)), true
)
