with

steps as (

    select
        dialogue_id,
        count(*) as n_steps,
        min(step_index) as first_step,
        max(step_index) as last_step

    from {{ ref('fct_transitions') }}
    where {{ is_day_to_rebuild('dialogue_day') }}
    group by dialogue_id

),

dialogues as (

    select * from {{ ref('fct_dialogues') }}
    where {{ is_day_to_rebuild('dialogue_day') }}

)

select
    dialogues.dialogue_day,
    dialogues.n_steps as n_steps_of_the_dialogue,
    steps.n_steps,
    steps.first_step,
    steps.last_step

from dialogues
full join steps on dialogues.dialogue_id = steps.dialogue_id
where
    coalesce(dialogues.n_steps, -1) <> coalesce(steps.n_steps, 0)
    or steps.first_step <> 0
    or steps.last_step <> steps.n_steps - 1
