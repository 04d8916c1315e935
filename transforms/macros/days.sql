-- Which dialogue days this build rewrites. The range comes from --vars only, never from what a table holds.

{# True when a range is given and every mart exists; otherwise all days are built, so that a night killed in the
   first build never leaves a mart with a part of its days. #}
{% macro is_partial_build() %}
    {%- if not execute or flags.FULL_REFRESH or not var('min_date') or not var('max_date') -%}
        {{ return(false) }}
    {%- endif -%}
    {%- for name in ['fct_dialogues', 'fct_transitions', 'fct_turns'] -%}
        {%- if adapter.get_relation(database=this.database, schema=this.schema, identifier=name) is none -%}
            {{ return(false) }}
        {%- endif -%}
    {%- endfor -%}
    {{ return(true) }}
{% endmacro %}

{% macro is_day_to_rebuild(day) -%}
    {%- if is_partial_build() -%}
        {{ day }} between date '{{ var("min_date") }}' and date '{{ var("max_date") }}'
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}

{# The clock of the data, or null where the landed files have to say. #}
{% macro given_clock() -%}
    {%- if var('as_of') -%} cast('{{ var("as_of") }}' as timestamp) {%- else -%} cast(null as timestamp) {%- endif -%}
{%- endmacro %}
