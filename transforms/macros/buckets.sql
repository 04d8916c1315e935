-- Coarse states of a dialogue: the state bucket of the data sets, and the coarser bucket of the private aggregates.

{# '1', '2-3', …, '8+': the band of a step's number (counted from 1), given the first step of each band. #}
{% macro turn_band(step_number, edges) -%}
    {%- if edges | length == 1 -%}
    '{{ edges[0] }}+'
    {%- else -%}
    case
        {%- for edge in edges[1:] %}
            {%- set below = edges[loop.index0] %}
        when {{ step_number }} < {{ edge }}
            then '{{ below if edge == below + 1 else below ~ "-" ~ (edge - 1) }}'
        {%- endfor %}
        else '{{ edges[-1] }}+'
    end
    {%- endif -%}
{%- endmacro %}

{# `<band>|<last strategy>|<segment>|<customer act>` at the level of var privacy_grid, 'any' where it does not tell
   apart. Keys come from --vars alone: what is not on a public list is 'other'. #}
{% macro aggregate_bucket(step_number, previous_strategy, segment, customer_act) -%}
    {%- set level = var('privacy_grid') -%}
    {%- set segments = var('privacy_segments') -%}
    {{ turn_band(step_number, var('privacy_turn_edges')) }}
    {%- if level == 'turn_segment_act_strategy' %}
    || '|' || coalesce({{ previous_strategy }}, 'start')
    {%- else %}
    || '|any'
    {%- endif %}
    {%- if level != 'turn' and segments %}
    || '|' || case when {{ segment }} in ({{ quoted(segments) }}) then {{ segment }} else 'other' end
    {%- else %}
    || '|any'
    {%- endif %}
    {%- if level in ('turn_segment_act', 'turn_segment_act_strategy') %}
    || '|' || case
        when {{ customer_act }} is null then 'none'
        when {{ customer_act }} in ({{ quoted(var('privacy_customer_acts')) }}) then {{ customer_act }}
        else 'other'
    end
    {%- else %}
    || '|any'
    {%- endif %}
{%- endmacro %}

{# For `in (…)`; an empty list holds nothing that a log says. #}
{% macro quoted(names) -%}
    {%- for name in names -%}
        '{{ name | replace("'", "''") }}'{{ ', ' if not loop.last }}
    {%- else -%}
        ''
    {%- endfor -%}
{%- endmacro %}
