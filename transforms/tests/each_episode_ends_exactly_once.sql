select
    dialogue_day,
    count(case when is_last_step then 1 end) as n_last_steps,
    count(case when is_terminated then 1 end) + count(case when is_truncated then 1 end) as n_ends

from {{ ref('fct_transitions') }}
where {{ is_day_to_rebuild('dialogue_day') }}
group by dialogue_id, dialogue_day
having
    count(case when is_last_step then 1 end) <> 1
    or count(case when is_terminated then 1 end) + count(case when is_truncated then 1 end) <> 1
    or max(case when is_last_step then step_index end) <> max(step_index)
