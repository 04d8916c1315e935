-- Which dialogue days this build rewrites. The range comes from --vars only, never from what a table holds.

{# True when a range is given and every table of all days exists; otherwise all days are built, so that a night killed
   in the first build never leaves one with a part of its days. #}
{% macro is_partial_build() %}
    {%- if not execute or flags.FULL_REFRESH or not var('min_date') or not var('max_date') -%}
        {{ return(false) }}
    {%- endif -%}
    {%- for name in ['fct_dialogues', 'fct_transitions', 'fct_turns', 'int_steps_answered'] -%}
        {%- if adapter.get_relation(database=this.database, schema=target.schema, identifier=name) is none -%}
            {{ return(false) }}
        {%- endif -%}
    {%- endfor -%}
    {{ return(true) }}
{% endmacro %}

{% macro is_day_to_rebuild(day) -%}
    {%- if is_partial_build() -%}
        {{ day }} between date '{{ var("min_date") }}' and date '{{ var("max_date") }}'
        {%- if var('days_to_rebuild') %} and {{ day }} in (date '{{ var("days_to_rebuild") | join("', date '") }}'){% endif -%}
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}

{# The days of a partial build, one by one. #}
{% macro days_to_rebuild() %}
    {%- if var('days_to_rebuild') -%}
        {{ return(var('days_to_rebuild')) }}
    {%- endif -%}
    {%- set first = modules.datetime.date.fromisoformat(var('min_date')) -%}
    {%- set last = modules.datetime.date.fromisoformat(var('max_date')) -%}
    {%- set days = [] -%}
    {%- for offset in range((last - first).days + 1) -%}
        {%- do days.append((first + modules.datetime.timedelta(days=offset)).isoformat()) -%}
    {%- endfor -%}
    {{ return(days) }}
{% endmacro %}

{# Arrival days that can hold a turn of the days of this build: older landing is not read. At 5 million turns in 100 days
   it took a night's int_dialogue_days from 5.2 to 0.5 s of CPU. #}
{% macro is_arrival_to_read(arrival_day) -%}
    {%- if is_partial_build() and var('min_arrival_day') -%}
        {{ arrival_day }} >= date '{{ var("min_arrival_day") }}'
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}

{# The clock of the data, or null where the landed files have to say. #}
{% macro given_clock() -%}
    {%- if var('as_of') -%} cast('{{ var("as_of") }}' as timestamp) {%- else -%} cast(null as timestamp) {%- endif -%}
{%- endmacro %}
