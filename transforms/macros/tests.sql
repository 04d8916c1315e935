-- What data tests read.

{# Of a table rewritten by day only the days of this build, whole on a full one: the others were tested when they were built,
   and a night must not get slower with history. Overrides dbt's macro of this name. #}
{% macro get_where_subquery(relation) -%}
    {%- set conditions = [config.get('where')] | select | list -%}
    {%- if relation.identifier in ['fct_transitions', 'fct_turns', 'int_steps_answered'] -%}
        {%- do conditions.append(is_day_to_rebuild('dialogue_day')) -%}
    {%- endif -%}
    {%- if conditions -%}
        (select * from {{ relation }} where {{ conditions | join(' and ') }}) as tested
    {%- else -%}
        {{ relation }}
    {%- endif -%}
{%- endmacro %}
